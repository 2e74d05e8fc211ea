// Where the features of an evaluation come from: a frozen encoder of a checkpoint, or the raw pixels.
#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "csml/features.h"
#include "csml/saved_model.h"

namespace csml {

/// What the commands knn, linear, embed and neighbors are told about features.
struct FeatureSourceOptions {
  std::string checkpoint, features = "backbone", encoder = "q", device = "auto", interpolation;
  int resize = -1, size = 0;  // -1 and 0: as the checkpoint's configuration says
  int batch_size = 0, workers = 2;
};
/// pixels: may `--features pixels` be asked? encoder: the default.
void add_feature_options(CLI::App& app, FeatureSourceOptions& options, bool pixels, const std::string& encoder = "q");

class FeatureSource {
 public:
  /// Loads the encoder; the transform is that of the checkpoint's configuration, options win. With pixels, `reference`
  /// (the data the features are compared with) gives size, mean and deviation.
  FeatureSource(Device& device, const FeatureSourceOptions& options, const Dataset& reference);

  /// Features of every image, unit rows where `l2_normalise`, with progress under `label`. Unreadable images are named
  /// on standard error.
  Features extract(const Dataset& dataset, const std::string& label, bool l2_normalise = true) const;

  /// Throws UsageError, with advice, for images of another number of channels than the encoder takes.
  void check_channels(const Dataset& dataset) const;

  /// features, encoder, checkpoint, resize, size: for a result's JSON.
  nlohmann::json describe() const;
  /// "backbone features of encoder q, 28 px as they are, running statistics": for its protocol.
  std::string protocol() const;
  const SavedModel& model() const { return model_; }
  const FeatureOptions& options() const { return features_; }

 private:
  void standardise(const Dataset& reference);

  Device& device_;
  FeatureSourceOptions asked_;
  SavedModel model_;  // empty with pixels
  FeatureOptions features_;
};

/// Opens a SPEC that must have labels (`why` needs them).
std::unique_ptr<Dataset> open_labelled(const std::string& spec, const std::string& why);
/// Throws Error unless both sets have the same classes under the same numbers.
void check_same_classes(const Dataset& train, const Dataset& test);

}  // namespace csml
