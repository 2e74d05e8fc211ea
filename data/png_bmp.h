// What stb_image does not look at in PNG and BMP files: they are checked before it reads them, and get the palette
// entries that they lack, which it would leave to chance.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace csml {

struct PngExtent {
  int64_t height = 0, width = 0;
};

/// Walks the chunks of a PNG (whose first 8 bytes are right). Throws Error for a file that ends early and for wrong
/// checksums of critical chunks; those of ancillary ones do not matter to the pixels. Returns a copy with a palette of
/// 256 entries, the new ones black as libpng and Pillow have them, or nothing where the file can be read as it is.
std::vector<uint8_t> checked_png(std::span<const uint8_t> bytes);
/// Extent of a checked PNG, by its header.
PngExtent png_extent(std::span<const uint8_t> bytes);

/// The same for a BMP of that extent, whose header stb_image can read.
std::vector<uint8_t> checked_bmp(std::span<const uint8_t> bytes, int height, int width);

}  // namespace csml
