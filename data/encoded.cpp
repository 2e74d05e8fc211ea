#include "data/encoded.h"
#include "data/exif.h"
#include "data/square.h"
#include "kernels/check.h"

namespace csml {

EncodedDataset::EncodedDataset(const DatasetSpec& spec, const DecodeLimits& limits)
    : limits_(limits), size_(spec.size), exif_(spec.exif) {
  kind_ = spec.kind;
  path_ = spec.path;
  channels_ = spec.channels;
}

std::string EncodedDataset::pixels_text() const {
  return size_ > 0 ? cat("image files as {0} x {0} x {1}", size_, channels_)
                   : cat("image files, {} channels", channels_);
}

bool EncodedDataset::encoded(int64_t i, std::vector<uint8_t>& bytes) const {
  if (size_ > 0 || exif_) return false;  // size= and exif= ask for other pixels than the file's
  try {
    read(i, bytes);
  } catch (const std::exception& e) { throw Error(cat("{}: {}", name(i), e.what())); }
  return true;
}

ImageView EncodedDataset::view(int64_t i, LoadScratch& scratch, const ChooseRegion& region) const {
  int orientation = 1;
  try {
    read(i, scratch.bytes);
    if (exif_) orientation = exif_orientation(scratch.bytes);
    const bool whole = size_ > 0 || orientation != 1;
    decode_image(scratch.bytes, channels_, scratch.decoded, limits_, whole ? ChooseRegion() : region);
  } catch (const std::exception& e) { throw Error(cat("{}: {}", name(i), e.what())); }
  if (orientation != 1) turn_upright(scratch.decoded.view(), orientation, scratch.upright);
  const ImageView image = (orientation != 1 ? scratch.upright : scratch.decoded).view();
  return size_ > 0 ? fit_square(image, size_, scratch.resized, scratch.resize) : image;
}

}  // namespace csml
