// PNG and BMP through stb_image, after the checks of data/png_bmp.h.
#include <algorithm>
#include <cstdlib>
#include <limits>
#include <memory>

#include "data/formats.h"
#include "data/png_bmp.h"
#include "kernels/check.h"

namespace csml {
namespace {

// stb_image inflates before it looks at the image's size; this budget keeps a decompression bomb from growing.
thread_local size_t stb_largest_block = 0;

void* stb_allocate(size_t bytes) { return bytes > stb_largest_block ? nullptr : std::malloc(bytes); }
void* stb_reallocate(void* block, size_t bytes) {
  return bytes > stb_largest_block ? nullptr : std::realloc(block, bytes);
}

}  // namespace
}  // namespace csml

#define STBI_MALLOC(bytes) csml::stb_allocate(bytes)
#define STBI_REALLOC(block, bytes) csml::stb_reallocate(block, bytes)
#define STBI_FREE(block) std::free(block)
#define STBI_ONLY_PNG
#define STBI_ONLY_BMP
#define STBI_NO_STDIO
#define STBI_MAX_DIMENSIONS (1 << 24)
#define STB_IMAGE_STATIC
#define STB_IMAGE_IMPLEMENTATION
#include <stb/stb_image.h>

namespace csml {
namespace {

DecodeInfo decode_stb(Bytes bytes, ImageFormat format, int channels, Image& out, const DecodeLimits& limits) {
  const char* name = format == ImageFormat::png ? "PNG" : "BMP";
  std::vector<uint8_t> completed;
  if (format == ImageFormat::png) {
    completed = checked_png(bytes);
    const PngExtent extent = png_extent(bytes);
    check_extent(extent.height, extent.width, limits);
  }
  stb_largest_block = 1 << 16;
  int width = 0, height = 0, parts = 0;
  if (!stbi_info_from_memory(bytes.data(), static_cast<int>(bytes.size()), &width, &height, &parts))
    throw Error(cat("damaged {}: {}", name, stbi_failure_reason()));
  if (format == ImageFormat::bmp && height < 0 && height != std::numeric_limits<int>::min()) height = -height;
  check_extent(height, width, limits);  // a BMP's height is negative where its rows go downwards
  if (format == ImageFormat::bmp) completed = checked_bmp(bytes, height, width);
  if (!completed.empty()) bytes = completed;
  // Twice the widest raw image (4 channels of 16 bits): stb_image grows its inflate buffer by doubling.
  stb_largest_block = std::min<size_t>(limits.memory, (size_t{1} << 16) + size_t{16} * width * height + 16 * height);
  int w = 0, h = 0;
  // Gray comes from RGB by our own formula, so that both channel counts agree with Pillow.
  const std::unique_ptr<stbi_uc, void (*)(void*)> pixels(
      stbi_load_from_memory(bytes.data(), static_cast<int>(bytes.size()), &w, &h, &parts, 3), std::free);
  if (!pixels) throw Error(cat("damaged {}: {}", name, stbi_failure_reason()));
  CHECK(w == width && h == height, "{} decoded to {} x {} where its header says {} x {}", name, w, h, width, height);
  out.reset(h, w, channels);
  convert_pixels(pixels.get(), 3, out.data(), channels, static_cast<size_t>(w) * h);
  return {format, h, w, 0, {}};
}

}  // namespace

DecodeInfo decode_png(Bytes bytes, int channels, Image& out, const DecodeLimits& limits) {
  return decode_stb(bytes, ImageFormat::png, channels, out, limits);
}

DecodeInfo decode_bmp(Bytes bytes, int channels, Image& out, const DecodeLimits& limits) {
  return decode_stb(bytes, ImageFormat::bmp, channels, out, limits);
}

}  // namespace csml
