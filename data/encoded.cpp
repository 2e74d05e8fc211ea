#include <algorithm>
#include <cctype>
#include <filesystem>
#include <set>

#include "data/dataset_kinds.h"
#include "kernels/check.h"

namespace csml {

EncodedDataset::EncodedDataset(const DatasetSpec& spec, const DecodeLimits& limits)
    : limits_(limits), size_(spec.size) {
  kind_ = spec.kind;
  path_ = spec.path;
  channels_ = spec.channels;
}

std::string EncodedDataset::pixels_text() const {
  return size_ > 0 ? cat("image files as {0} x {0} x {1}", size_, channels_)
                   : cat("image files, {} channels", channels_);
}

bool EncodedDataset::encoded(int64_t i, std::vector<uint8_t>& bytes) const {
  if (size_ > 0) return false;  // size= asks for other pixels than the file's
  try {
    read(i, bytes);
  } catch (const std::exception& e) { throw Error(cat("{}: {}", name(i), e.what())); }
  return true;
}

ImageView EncodedDataset::view(int64_t i, LoadScratch& scratch, const ChooseRegion& region) const {
  try {
    read(i, scratch.bytes);
    decode_image(scratch.bytes, channels_, scratch.decoded, limits_, size_ > 0 ? ChooseRegion() : region);
  } catch (const std::exception& e) { throw Error(cat("{}: {}", name(i), e.what())); }
  const ImageView image = scratch.decoded.view();
  return size_ > 0 ? fit_square(image, size_, scratch.resized, scratch.resize) : image;
}

bool is_image_name(const std::string& name) {
  static const std::set<std::string> kExtensions = {".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm"};
  std::string extension = std::filesystem::path(name).extension().string();
  for (char& c : extension) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return kExtensions.count(extension) > 0;
}

}  // namespace csml
