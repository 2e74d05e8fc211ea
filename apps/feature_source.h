// Where the features of an evaluation come from: a frozen encoder of a checkpoint, or the raw pixels.
#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "apps/command.h"
#include "csml/evaluation/features.h"
#include "csml/training/saved_model.h"

namespace csml {

/// What the commands knn, linear, embed and neighbors are told about features.
struct FeatureSourceOptions {
  std::string checkpoint, features = "backbone", encoder = "q", device = "auto", interpolation;
  int resize = -1, size = 0;  // -1 and 0: as the checkpoint's configuration says
  int batch_size = 0, workers = 2;
};

/// What the commands on one data set (embed, neighbors) are told.
struct DataOptions {
  CommonOptions common;
  FeatureSourceOptions source;
  std::string data;
};
/// --data, the options about features (encoder: which one is meant when none is named) and the common ones.
void add_data_options(CLI::App& app, DataOptions& options, const std::string& encoder);

/// What the commands that judge features by labels (knn, linear, svm, finetune) are told.
struct LabelledOptions {
  CommonOptions common;
  FeatureSourceOptions source;
  std::string train, test;                    // SPECs
  std::string train_features, test_features;  // or files of csml embed (apps/feature_set.h)
};
/// --train, --test, where `files` --train-features and --test-features instead, the options about features and the
/// common ones.
void add_labelled_options(CLI::App& app, LabelledOptions& options, bool files);

struct LabelledSets {
  std::unique_ptr<Dataset> train, test;
  /// train, test, n_train, n_test: for a result's JSON.
  nlohmann::json describe(const LabelledOptions& options) const;
};
/// The test set's classes are numbered as the training set's, by their names. Throws Error unless both sets have labels,
/// and for test images of a class that the training set has not. command: for its text.
LabelledSets open_labelled(const LabelledOptions& options, const std::string& command);

class FeatureSource {
 public:
  /// Loads the encoder; the transform is that of the checkpoint's configuration, options win. With pixels, `reference`
  /// (the data the features are compared with) gives size, mean and deviation.
  FeatureSource(Device& device, const FeatureSourceOptions& options, const Dataset& reference);

  /// Features of every image, unit rows where `l2_normalise`, with progress under `label`. Unreadable images are named
  /// on standard error.
  Features extract(const Dataset& dataset, const std::string& label, bool l2_normalise = true) const;

  /// Features of one image of `dataset`.
  int64_t dim(const Dataset& dataset) const;

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

}  // namespace csml
