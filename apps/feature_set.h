// Labelled features to judge: an encoder's (or the pixels) on two data sets, or two files that csml embed wrote.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "apps/feature_source.h"
#include "data/shifted.h"

namespace csml {

/// One side: N rows of D features with labels, read or computed when they are asked for.
class FeatureSet {
 public:
  virtual ~FeatureSet() = default;
  int64_t size() const { return static_cast<int64_t>(labels_.size()); }
  const std::vector<int>& labels() const { return labels_; }
  virtual int64_t dim() const = 0;
  /// Rows [first, first + count), unit rows where `l2_normalise`; progress, where there is any, under `label`.
  virtual Features rows(int64_t first, int64_t count, bool l2_normalise, const std::string& label) const = 0;
  Features all(bool l2_normalise, const std::string& label) const { return rows(0, size(), l2_normalise, label); }

 protected:
  std::vector<int> labels_;
};

/// A file of csml embed: `features` f32 [N, D] and `labels` i64 [N]. Only the rows asked for are in memory, once, and
/// besides them a few MiB.
class FeatureFile : public FeatureSet {
 public:
  /// Throws Error that names the file: arrays missing, of other types or shapes, labels missing (-1) or negative.
  FeatureFile(Device& device, const std::filesystem::path& path);

  int64_t dim() const override { return dim_; }
  Features rows(int64_t first, int64_t count, bool l2_normalise, const std::string& label) const override;

  /// Numbers the classes as `reference` does, by their names (data/class_names.h).
  void use_classes_of(const FeatureFile& reference);

  const std::string& name() const { return name_; }
  /// Names of the classes; empty where the file does not say.
  const std::vector<std::string>& class_names() const { return class_names_; }
  /// features, encoder, checkpoint, resize, size of what made them: null where the file does not say.
  const nlohmann::json& made_by() const { return made_by_; }
  /// How they were made, for a result's protocol.
  const std::string& protocol() const { return protocol_; }

 private:
  Device& device_;
  SafetensorsFile file_;
  std::string name_, protocol_;
  std::vector<std::string> class_names_;
  nlohmann::json made_by_;
  int64_t dim_ = 0;
};

/// Both sides, what they are called and where they come from.
struct FeatureSets {
  LabelledSets data;  // with an encoder; empty with files
  std::unique_ptr<FeatureSource> source;
  std::unique_ptr<Shifted> moved;
  std::unique_ptr<FeatureSet> train, test;
  int class_count = 0;
  nlohmann::json json;   // features, encoder, checkpoint, resize, size, train, test, n_train, n_test: for a result
  std::string protocol;  // for a result's
};
/// --train and --test with an encoder, or --train-features and --test-features. Throws UsageError for a mixture, Error
/// unless both sides have labels of the same classes and features of the same dimension. command: for texts. shift:
/// pixels by which test images are moved.
FeatureSets open_feature_sets(Device& device, const LabelledOptions& options, const std::string& command,
                              int shift = 0);

}  // namespace csml
