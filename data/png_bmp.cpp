#include "data/png_bmp.h"

#include <zlib.h>

#include <algorithm>
#include <cstring>

#include "kernels/check.h"

namespace csml {
namespace {

using Bytes = std::span<const uint8_t>;

uint32_t big32(const uint8_t* p) {
  return uint32_t{p[0]} << 24 | uint32_t{p[1]} << 16 | uint32_t{p[2]} << 8 | uint32_t{p[3]};
}
uint32_t little32(const uint8_t* p) {
  return uint32_t{p[3]} << 24 | uint32_t{p[2]} << 16 | uint32_t{p[1]} << 8 | uint32_t{p[0]};
}
uint16_t little16(const uint8_t* p) { return static_cast<uint16_t>(p[1] << 8 | p[0]); }

/// stb_image skips checksums and unfinished files.
void check_png(Bytes bytes) {
  size_t at = 8;
  bool data = false;
  for (int chunk = 0;; ++chunk) {
    if (bytes.size() < at + 12) throw Error("truncated PNG: its last chunk is missing");
    const size_t length = big32(&bytes[at]);
    const uint8_t* type = &bytes[at + 4];
    const std::string name = cat("{:c}{:c}{:c}{:c}", type[0], type[1], type[2], type[3]);
    if (chunk == 0 && name == "CgBI") throw Error("PNG in Apple's CgBI variant is not supported");
    if (chunk == 0 && (name != "IHDR" || length != 13)) throw Error("damaged PNG: it does not begin with a header");
    if (length > bytes.size() - at - 12) throw Error(cat("truncated PNG: the file ends inside chunk {}", chunk));
    const bool critical = type[0] >= 'A' && type[0] <= 'Z';
    if (critical && crc32(0, type, static_cast<uInt>(length + 4)) != big32(&bytes[at + 8 + length]))
      throw Error(cat("damaged PNG: wrong checksum of chunk {}", chunk));
    if (name == "IDAT") data = true;
    if (name == "IEND") break;
    at += length + 12;
  }
  if (!data) throw Error("damaged PNG: it holds no image data");
}

}  // namespace

std::vector<uint8_t> checked_png(Bytes bytes) {
  check_png(bytes);
  constexpr size_t kFull = 3 * 256;
  for (size_t at = 8; std::memcmp(&bytes[at + 4], "IEND", 4) != 0;) {
    const size_t length = big32(&bytes[at]), end = at + 8 + length;
    if (std::memcmp(&bytes[at + 4], "PLTE", 4) == 0 && length < kFull && length % 3 == 0) {
      std::vector<uint8_t> copy(bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(end));
      copy[at + 2] = kFull >> 8, copy[at + 3] = kFull & 0xFF;
      copy.resize(at + 8 + kFull);
      copy.insert(copy.end(), bytes.begin() + static_cast<ptrdiff_t>(end), bytes.end());
      return copy;
    }
    at = end + 4;
  }
  return {};
}

PngExtent png_extent(Bytes bytes) { return {big32(&bytes[20]), big32(&bytes[16])}; }

std::vector<uint8_t> checked_bmp(Bytes bytes, int height, int width) {
  if (bytes.size() < 54) throw Error("truncated BMP: the header is incomplete");
  const uint64_t header = 14 + uint64_t{little32(&bytes[14])}, offset = little32(&bytes[10]);
  const bool core = header == 14 + 12;
  const unsigned bits = little16(&bytes[core ? 24 : 28]);
  const uint64_t need = offset + (static_cast<uint64_t>(width) * bits + 31) / 32 * 4 * static_cast<uint64_t>(height);
  // Writers disagree on the padding of the last row; stb_image reads zeros past the end.
  if (bytes.size() + 3 < need) throw Error(cat("truncated BMP: {} bytes where {} are needed", bytes.size(), need));
  if (bits > 8) return {};
  const uint64_t entry = core ? 3 : 4, full = header + (entry << bits);
  if (offset < header + entry) throw Error("damaged BMP: it has no palette");
  if (offset >= full && !core) return {};
  const auto at = [&](uint64_t place) { return bytes.begin() + static_cast<ptrdiff_t>(std::min(place, bytes.size())); };
  std::vector<uint8_t> copy(bytes.begin(), at(std::min(offset, full)));
  const size_t pixels = full + (core ? 12 : 0);  // stb_image takes a core header for 12 bytes longer than it is
  copy.resize(pixels);
  for (int i = 0; i < 4; ++i) copy[10 + static_cast<size_t>(i)] = static_cast<uint8_t>(pixels >> (8 * i));
  copy.insert(copy.end(), at(offset), bytes.end());
  return copy;
}

}  // namespace csml
