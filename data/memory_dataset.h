// A data set whose images have one size and lie side by side in memory.
#pragma once

#include <string>
#include <vector>

#include "data/dataset.h"

namespace csml {

/// Images of one size, side by side in memory.
class MemoryDataset : public Dataset {
 public:
  struct Content {
    std::string kind, path;
    int height = 0, width = 0, channels = 3;
    std::vector<uint8_t> pixels;  // [N, height, width, channels]
    std::vector<int> labels;      // [N]
    std::vector<std::string> class_names;
  };
  explicit MemoryDataset(Content content);

  std::string name(int64_t i) const override;
  uint64_t fingerprint() const override;
  bool in_memory() const override { return true; }
  ImageView view(int64_t i, LoadScratch& scratch, const ChooseRegion& region) const override;
  std::string pixels_text() const override;

 protected:
  void select(const std::vector<int64_t>& keep) override;

 private:
  size_t image_bytes() const { return static_cast<size_t>(height_) * width_ * channels_; }

  int height_, width_;
  std::vector<uint8_t> pixels_;
  std::vector<int64_t> record_;  // position in the files, for name()
};

/// Makes every image of `content` size x size.
void fit_square(MemoryDataset::Content& content, int size);

}  // namespace csml
