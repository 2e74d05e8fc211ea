// Some images of a data set as a data set of its own: the labelled part of a semi-supervised run, pseudo labels,
// blocks.
#pragma once

#include <vector>

#include "data/dataset.h"

namespace csml {

class Subset : public Dataset {
 public:
  /// Image i is image index[i] of `base`, which must outlive this; an image may come up more than once. labels: one per
  /// image, in [0, base.class_count()); empty: those of `base`. Throws Error for an index or a label out of range.
  Subset(const Dataset& base, std::vector<int64_t> index, std::vector<int> labels = {});

  const std::vector<int64_t>& index() const { return index_; }
  std::string name(int64_t i) const override { return base_.name(index_[static_cast<size_t>(i)]); }
  uint64_t fingerprint() const override;
  bool in_memory() const override { return base_.in_memory(); }
  ImageView view(int64_t i, LoadScratch& scratch, const ChooseRegion& region) const override {
    return base_.view(index_[static_cast<size_t>(i)], scratch, region);
  }
  std::string pixels_text() const override { return base_.pixels_text(); }

 protected:
  void select(const std::vector<int64_t>& keep) override;

 private:
  const Dataset& base_;
  std::vector<int64_t> index_;
};

}  // namespace csml
