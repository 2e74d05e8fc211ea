// Private to data/: the makers behind open_dataset, and the data set that keeps its pixels in memory.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/dataset.h"

namespace csml {

/// A SPEC taken apart; absent options keep their defaults.
struct DatasetSpec {
  std::string kind, path;
  bool test = false;          // split=test
  bool split_given = false;   // split= was written
  int64_t limit = 0;          // 0: all
  double holdout = 0;         // share in [0, 1)
  bool part_holdout = false;  // part=holdout
  int size = 0;               // 0: as stored
  int channels = 3;
  bool labels = true;
};

/// Throws UsageError naming the word that cannot be read and the nearest one that can.
DatasetSpec parse_spec(const std::string& text);

/// "; left out: 12 .webp, 3 hidden", or nothing.
std::string left_out_text(const std::map<std::string, int64_t>& left_out);

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

/// Images as files of JPEG, PNG, …, wherever those lie: decoded when they are asked for.
class EncodedDataset : public Dataset {
 public:
  EncodedDataset(const DatasetSpec& spec, const DecodeLimits& limits);

  bool in_memory() const override { return false; }
  std::string pixels_text() const override;
  bool encoded(int64_t i, std::vector<uint8_t>& bytes) const override;
  ImageView view(int64_t i, LoadScratch& scratch, const ChooseRegion& region) const override;

 protected:
  /// The bytes of image i's file. Throws Error with the reason (without the name).
  virtual void read(int64_t i, std::vector<uint8_t>& bytes) const = 0;
  const DecodeLimits& limits() const { return limits_; }

 private:
  DecodeLimits limits_;
  int size_;
};

/// The name ends in .jpg, .jpeg, .png, .bmp, .ppm or .pgm.
bool is_image_name(const std::string& name);

/// Stores one image (1 or 3 channels) at `out` with `channels` channels.
void store_pixels(const ImageView& image, int channels, uint8_t* out);
/// Resizes the short side to size and takes the central crop; returns the argument when it has that size already.
ImageView fit_square(const ImageView& image, int size, Image& out, ResizeScratch& scratch);
/// Makes every image of `content` size x size.
void fit_square(MemoryDataset::Content& content, int size);

std::unique_ptr<Dataset> open_cifar(const DatasetSpec& spec);
std::unique_ptr<Dataset> open_idx(const DatasetSpec& spec);
std::unique_ptr<Dataset> open_folder(const DatasetSpec& spec, const DecodeLimits& limits);
std::unique_ptr<Dataset> open_list(const DatasetSpec& spec, const DecodeLimits& limits);
std::unique_ptr<Dataset> open_pack(const DatasetSpec& spec, const DecodeLimits& limits);
std::unique_ptr<Dataset> open_tar(const DatasetSpec& spec, const DecodeLimits& limits);
std::unique_ptr<Dataset> open_synthetic(const DatasetSpec& spec);

/// xxh3.
uint64_t hash_bytes(const void* data, size_t size, uint64_t seed);

/// The directory itself or its subdirectory `inner`, whichever holds `file`; empty when neither does.
std::string find_directory(const std::string& path, const std::string& inner, const std::vector<std::string>& files);

}  // namespace csml
