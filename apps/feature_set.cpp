#include "apps/feature_set.h"

#include <algorithm>
#include <limits>

#include "data/class_names.h"
#include "data/subset.h"
#include "engine/log.h"
#include "engine/ops.h"

namespace csml {
namespace {

constexpr size_t kChunkBytes = size_t{4} << 20;  // of a file, in host memory at a time
const std::vector<std::string> kMadeBy{"features", "encoder", "checkpoint", "checkpoint_xxh3_128",
                                       "resize",   "size",    "step",       "epoch"};

/// What a frozen encoder, or none, makes of a data set.
class EncodedSet : public FeatureSet {
 public:
  /// source and dataset must outlive this.
  EncodedSet(const FeatureSource& source, const Dataset& dataset) : source_(source), dataset_(dataset) {
    for (int64_t i = 0; i < dataset.size(); ++i) labels_.push_back(dataset.label(i));
  }
  int64_t dim() const override { return source_.dim(dataset_); }
  Features rows(int64_t first, int64_t count, bool l2_normalise, const std::string& label) const override {
    if (count == size()) return source_.extract(dataset_, label, l2_normalise);
    std::vector<int64_t> index;
    for (int64_t i = first; i < first + count; ++i) index.push_back(i);
    return source_.extract(Subset(dataset_, std::move(index)), label, l2_normalise);
  }

 private:
  const FeatureSource& source_;
  const Dataset& dataset_;
};

/// A metadata entry that is JSON; null where there is none or it is something else.
nlohmann::json metadata_json(const Metadata& metadata, const std::string& key) {
  const auto found = metadata.find(key);
  if (found == metadata.end()) return {};
  const nlohmann::json value = parse_json(found->second);
  return value.is_discarded() ? nlohmann::json() : value;
}

FeatureSets open_files(Device& device, const LabelledOptions& o) {
  for (const auto& [given, flag] : {std::pair{!o.train.empty(), "--train"},
                                    {!o.test.empty(), "--test"},
                                    {!o.source.checkpoint.empty(), "--checkpoint"}})
    if (given) throw UsageError(cat("--train-features and --test-features take no {}", flag));
  if (o.train_features.empty() || o.test_features.empty())
    throw UsageError("--train-features and --test-features belong together");
  auto train = std::make_unique<FeatureFile>(device, o.train_features);
  auto test = std::make_unique<FeatureFile>(device, o.test_features);
  if (train->dim() != test->dim())
    throw Error(cat("{} has features of dimension {}, {} of {}: they are not of the same encoder", train->name(),
                    train->dim(), test->name(), test->dim()));
  if (!train->class_names().empty() && !test->class_names().empty()) test->use_classes_of(*train);
  if (train->made_by() != test->made_by())
    log_warn(cat("{} and {} say that different things made them: {} and {}", train->name(), test->name(),
                 json_line(train->made_by()), json_line(test->made_by())));
  FeatureSets sets;
  for (const FeatureFile* file : {train.get(), test.get()}) {
    const int largest = *std::max_element(file->labels().begin(), file->labels().end());
    sets.class_count = std::max({sets.class_count, largest + 1, static_cast<int>(file->class_names().size())});
  }
  sets.json = train->made_by();
  sets.json.update(
      {{"train", train->name()}, {"test", test->name()}, {"n_train", train->size()}, {"n_test", test->size()}});
  sets.protocol = train->protocol();
  sets.train = std::move(train);
  sets.test = std::move(test);
  return sets;
}

}  // namespace

FeatureFile::FeatureFile(Device& device, const std::filesystem::path& path)
    : device_(device), file_(SafetensorsFile::open(path)), name_(path.string()) {
  for (const char* array : {"features", "labels"})
    if (!file_.contains(array)) throw Error(cat("{} has no array '{}': is it a file of csml embed?", name_, array));
  const ArrayInfo &features = file_.info("features"), &labels = file_.info("labels");
  if (features.dtype != DType::f32 || features.shape.rank() != 2 || features.shape.size() == 0)
    throw Error(
        cat("{}: 'features' is {} {}, must be f32 [N, D]", name_, name_of(features.dtype), features.shape.text()));
  if (labels.dtype != DType::i64 || !(labels.shape == Shape{features.shape[0]}))
    throw Error(cat("{}: 'labels' is {} {}, must be i64 [{}]", name_, name_of(labels.dtype), labels.shape.text(),
                    features.shape[0]));
  dim_ = features.shape[1];
  std::vector<int64_t> values(static_cast<size_t>(features.shape[0]));
  file_.read("labels", values.data(), labels.bytes);
  const nlohmann::json names = metadata_json(file_.metadata(), "classes");
  if (names.is_array())
    for (const nlohmann::json& name : names) class_names_.push_back(name.is_string() ? name.get<std::string>() : "");
  const int64_t most = class_names_.empty() ? std::numeric_limits<int>::max() : static_cast<int64_t>(names.size());
  for (size_t i = 0; i < values.size(); ++i) {
    if (values[i] == -1) throw Error(cat("{}: row {} has no label (-1)", name_, i));
    if (values[i] < 0 || values[i] >= most)
      throw Error(cat("{}: row {} has label {} of {} classes", name_, i, values[i], most));
    labels_.push_back(static_cast<int>(values[i]));
  }
  const nlohmann::json said = metadata_json(file_.metadata(), "made_by");
  for (const std::string& key : kMadeBy)
    made_by_[key] = said.is_object() && said.contains(key) ? said[key] : nlohmann::json();
  const auto protocol = file_.metadata().find("protocol");
  protocol_ = protocol == file_.metadata().end() ? cat("features of {}", path.filename().string()) : protocol->second;
}

void FeatureFile::use_classes_of(const FeatureFile& reference) {
  labels_ = labels_by_name(labels_, {class_names_, name_}, {reference.class_names_, reference.name_});
  class_names_ = reference.class_names_;
}

Features FeatureFile::rows(int64_t first, int64_t count, bool l2_normalise, const std::string&) const {
  const NoGrad no_grad;
  Features out{.values = Tensor(device_, {count, dim_}), .labels = {}, .bad_images = 0};
  out.labels.assign(labels_.begin() + first, labels_.begin() + first + count);
  const int64_t chunk = std::max<int64_t>(1, static_cast<int64_t>(kChunkBytes / sizeof(float)) / dim_);
  std::vector<float> host;
  for (int64_t done = 0; done < count; done += chunk) {
    const int64_t n = std::min(chunk, count - done);
    host.resize(static_cast<size_t>(n * dim_));
    file_.read_rows("features", first + done, n, host.data(), host.size() * sizeof(float));
    const Tensor rows = out.values.rows(done, n);
    rows.upload(host);
    if (l2_normalise) copy(l2_normalize(Var(rows)).value(), rows);
  }
  return out;
}

FeatureSets open_feature_sets(Device& device, const LabelledOptions& o, const std::string& command, int shift) {
  if (!o.train_features.empty() || !o.test_features.empty()) {
    if (shift > 0) throw UsageError("--shift moves images: it needs --checkpoint, --train and --test");
    return open_files(device, o);
  }
  FeatureSets sets;
  sets.data = open_labelled(o, command);
  sets.source = std::make_unique<FeatureSource>(device, o.source, *sets.data.train);
  if (shift > 0) sets.moved = std::make_unique<Shifted>(*sets.data.test, shift);
  const Dataset& tested = sets.moved ? static_cast<const Dataset&>(*sets.moved) : *sets.data.test;
  sets.train = std::make_unique<EncodedSet>(*sets.source, *sets.data.train);
  sets.test = std::make_unique<EncodedSet>(*sets.source, tested);
  sets.class_count = sets.data.train->class_count();
  sets.json = sets.source->describe();
  sets.json.update(sets.data.describe(o));
  sets.protocol = sets.source->protocol();
  return sets;
}

}  // namespace csml
