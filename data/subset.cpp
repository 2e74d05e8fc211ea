#include "data/subset.h"

#include "kernels/check.h"

namespace csml {

Subset::Subset(const Dataset& base, std::vector<int64_t> index, std::vector<int> labels)
    : base_(base), index_(std::move(index)) {
  kind_ = "subset";
  path_ = base.describe();
  class_names_ = base.class_names();
  channels_ = base.channels();
  CHECK(labels.empty() || labels.size() == index_.size(), "{} labels for {} images", labels.size(), index_.size());
  for (int64_t i : index_) CHECK(i >= 0 && i < base.size(), "image {} of {}", i, base.size());
  for (int label : labels)
    CHECK(label >= 0 && label < base.class_count(), "label {} of {} classes", label, base.class_count());
  labels_ = std::move(labels);
  if (labels_.empty())
    for (int64_t i : index_) labels_.push_back(base.label(i));
}

uint64_t Subset::fingerprint() const {
  const uint64_t images = hash_bytes(index_.data(), index_.size() * sizeof(int64_t), base_.fingerprint());
  return hash_bytes(labels_.data(), labels_.size() * sizeof(int), images);
}

void Subset::select(const std::vector<int64_t>& keep) {
  for (size_t to = 0; to < keep.size(); ++to) {
    labels_[to] = labels_[static_cast<size_t>(keep[to])];
    index_[to] = index_[static_cast<size_t>(keep[to])];
  }
  labels_.resize(keep.size());
  index_.resize(keep.size());
}

}  // namespace csml
