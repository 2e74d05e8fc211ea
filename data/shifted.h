// A data set whose images are moved by a few pixels: how much of an accuracy rests on where things are?
#pragma once

#include "data/dataset.h"

namespace csml {

class Shifted : public Dataset {
 public:
  /// Image i is that of `base`, which must outlive this, moved by `pixels` up, down, left or right, which is drawn per
  /// image (seed 0, its index); what comes in from outside is black.
  Shifted(const Dataset& base, int pixels);

  std::string name(int64_t i) const override { return base_.name(i); }
  uint64_t fingerprint() const override;
  bool in_memory() const override { return base_.in_memory(); }
  ImageView view(int64_t i, LoadScratch& scratch, const ChooseRegion& region) const override;
  std::string pixels_text() const override;

 protected:
  void select(const std::vector<int64_t>& keep) override;

 private:
  const Dataset& base_;
  int pixels_;
};

}  // namespace csml
