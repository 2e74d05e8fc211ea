#include "data/exif.h"

#include <algorithm>
#include <cstring>

namespace csml {
namespace {

using Bytes = std::span<const uint8_t>;

/// Numbers of a TIFF structure in its own byte order; 0 past its end.
struct Numbers {
  Bytes bytes;
  bool little;

  uint32_t at(size_t place, size_t count) const {
    uint32_t value = 0;
    if (place > bytes.size() || bytes.size() - place < count) return 0;
    for (size_t i = 0; i < count; ++i) value = value << 8 | bytes[place + (little ? count - 1 - i : i)];
    return value;
  }
};

/// The orientation in the first directory of EXIF's TIFF structure.
int orientation_of(Bytes tiff) {
  constexpr uint32_t kTag = 0x0112, kShort = 3;
  if (tiff.size() < 8 || (std::memcmp(tiff.data(), "II", 2) != 0 && std::memcmp(tiff.data(), "MM", 2) != 0)) return 1;
  const Numbers numbers{tiff, tiff[0] == 'I'};
  const size_t directory = numbers.at(4, 4);
  for (size_t i = 0; i < numbers.at(directory, 2); ++i) {
    const size_t entry = directory + 2 + 12 * i;
    if (entry + 12 > tiff.size()) return 1;
    if (numbers.at(entry, 2) != kTag) continue;
    const uint32_t value = numbers.at(entry + 8, 2);
    return numbers.at(entry + 2, 2) == kShort && value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
  }
  return 1;
}

}  // namespace

int exif_orientation(Bytes bytes) {
  if (bytes.size() < 4 || bytes[0] != 0xFF || bytes[1] != 0xD8) return 1;
  for (size_t at = 2; at + 4 <= bytes.size() && bytes[at] == 0xFF;) {
    const uint8_t marker = bytes[at + 1];
    if (marker == 0xFF) {  // fill bytes may stand before a marker
      ++at;
      continue;
    }
    if (marker == 0xDA || marker == 0xD9) return 1;  // the image begins, or ends
    const size_t length = static_cast<size_t>(bytes[at + 2]) << 8 | bytes[at + 3];
    if (length < 2 || length > bytes.size() - at - 2) return 1;
    const Bytes content = bytes.subspan(at + 4, length - 2);
    if (marker == 0xE1 && content.size() > 6 && std::memcmp(content.data(), "Exif\0\0", 6) == 0)
      return orientation_of(content.subspan(6));
    at += 2 + length;
  }
  return 1;
}

void turn_upright(const ImageView& image, int orientation, Image& out) {
  const bool transposed = orientation >= 5;
  const bool flip_y = orientation == 3 || orientation == 4 || orientation == 7 || orientation == 8;
  const bool flip_x = orientation == 2 || orientation == 3 || orientation == 6 || orientation == 7;
  const int height = transposed ? image.width : image.height, width = transposed ? image.height : image.width;
  out.reset(height, width, image.channels);
  for (int y = 0; y < height; ++y)
    for (int x = 0; x < width; ++x) {
      const int v = flip_y ? height - 1 - y : y, u = flip_x ? width - 1 - x : x;
      const uint8_t* from = transposed ? image.row(u) + v * image.channels : image.row(v) + u * image.channels;
      std::copy_n(from, image.channels, out.row(y) + x * image.channels);
    }
}

}  // namespace csml
