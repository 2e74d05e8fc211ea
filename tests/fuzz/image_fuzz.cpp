// Any bytes as an image file: JPEG, PNG, BMP, PNM. PNG files are tried a second time with right checksums.
#include <zlib.h>

#include <cstring>
#include <vector>

#include "data/decode.h"
#include "data/exif.h"
#include "tests/fuzz/target.h"

using namespace csml;

namespace {

using Bytes = std::span<const uint8_t>;

/// Small caps: what a file may cost grows with them, what can go wrong does not.
constexpr DecodeLimits kLimits{.file_bytes = size_t{1} << 20,
                               .pixels = 1 << 18,
                               .side = 65'500,
                               .scans = 40,
                               .scan_pixels = 1 << 21,
                               .memory = size_t{1} << 24,
                               .accept_truncated = false};

std::string decode(Bytes bytes, int channels, Image& out, DecodeInfo& info, const ChooseRegion& region = {}) {
  return fuzz::error_of([&] { info = decode_image(bytes, channels, out, kLimits, region); });
}

/// Fills an image with the complement of another: bytes that a decoder does not write then show.
void fill_with_complement(const Image& other, Image& image) {
  image.reset(other.height(), other.width(), other.channels());
  for (size_t i = 0; i < other.size(); ++i) image.data()[i] = static_cast<uint8_t>(~other.data()[i]);
}

/// A window that depends on the image's extent alone.
Window some_window(int height, int width) {
  const int y = height / 3, x = width / 4;
  return {y, x, (height - y + 1) / 2, (width - x + 1) / 2};
}

void check(Bytes bytes) {
  Image color, again, gray;
  DecodeInfo info, other;
  const std::string error = decode(bytes, 3, color, info);
  fuzz::require(decode(bytes, 1, gray, other) == error, "acceptance does not depend on the channels");
  if (!error.empty()) {
    fuzz::require(decode(bytes, 3, again, other, some_window) == error, "acceptance does not depend on the region");
    return;
  }
  fuzz::require(info.height == color.height() && info.width == color.width() && info.height > 0 && info.width > 0 &&
                    int64_t{info.height} * info.width <= kLimits.pixels,
                "the extent is known and within the cap");
  fuzz::require((info.warnings > 0) == !info.first_warning.empty(), "a warning has a text");

  fill_with_complement(color, again);
  fuzz::require(decode(bytes, 3, again, other).empty() && std::memcmp(color.data(), again.data(), color.size()) == 0,
                "the same bytes give the same pixels, all of them written");
  for (size_t i = 0; i < gray.size(); ++i) {
    const uint8_t* rgb = color.data() + 3 * i;
    fuzz::require(gray.data()[i] == luma(rgb[0], rgb[1], rgb[2]), "one channel is the luma of three");
  }

  fill_with_complement(color, again);
  fuzz::require(decode(bytes, 3, again, other, some_window).empty(), "acceptance does not depend on the region");
  const Window w = some_window(info.height, info.width);
  for (int y = w.y; y < w.y + w.height; ++y)
    fuzz::require(std::memcmp(color.row(y) + 3 * w.x, again.row(y) + 3 * w.x, 3 * static_cast<size_t>(w.width)) == 0,
                  "a region has the pixels of the whole image");
}

/// Sets the checksum of every chunk of a PNG right; false where there is nothing to set.
bool repair_png(std::vector<uint8_t>& bytes) {
  constexpr uint8_t kMagic[] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n'};
  if (bytes.size() < sizeof kMagic || !std::equal(std::begin(kMagic), std::end(kMagic), bytes.begin())) return false;
  bool changed = false;
  for (size_t at = sizeof kMagic; bytes.size() - at >= 12;) {
    const size_t length =
        size_t{bytes[at]} << 24 | size_t{bytes[at + 1]} << 16 | size_t{bytes[at + 2]} << 8 | size_t{bytes[at + 3]};
    if (length > bytes.size() - at - 12) break;
    const auto sum = static_cast<uint32_t>(crc32(0, &bytes[at + 4], static_cast<uInt>(length + 4)));
    uint8_t* place = &bytes[at + 8 + length];
    for (int i = 0; i < 4; ++i) {
      const auto b = static_cast<uint8_t>(sum >> (24 - 8 * i));
      changed |= place[i] != b;
      place[i] = b;
    }
    at += length + 12;
  }
  return changed;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  const int orientation = exif_orientation({data, bytes});
  fuzz::require(orientation >= 1 && orientation <= 8, "an orientation is one of eight");
  check({data, bytes});
  std::vector<uint8_t> repaired(data, data + bytes);
  if (repair_png(repaired)) check(repaired);
  return 0;
}
