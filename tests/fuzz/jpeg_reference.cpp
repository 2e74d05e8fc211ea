#include "tests/fuzz/jpeg_reference.h"

#include <csetjmp>
#include <cstdio>
#include <cstring>

#include <jpeglib.h>
// clang-format off
#include <jerror.h>
// clang-format on

#include "data/decode.h"
#include "tests/fuzz/target.h"

namespace csml::fuzz {
namespace {

struct Errors {
  jpeg_error_mgr base;
  std::jmp_buf jump;
  bool ended;  // bytes were asked for behind the end
};

/// Counts warnings. A file that only lacks its last marker is whole to us; libjpeg makes one up, and one byte more
/// where it skipped a segment that the end cuts off.
void count_warning(j_common_ptr info, int level) {
  auto* errors = reinterpret_cast<Errors*>(info->err);
  if (level >= 0) return;
  if (errors->base.msg_code == JWRN_JPEG_EOF)
    errors->ended = true;
  else if (!(errors->ended && errors->base.msg_code == JWRN_EXTRANEOUS_DATA))
    ++errors->base.num_warnings;
}

/// Nothing in it has a destructor that longjmp would skip: memory is the caller's. False: libjpeg fails or warns.
bool decode(jpeg_decompress_struct& info, Errors& errors, std::span<const uint8_t> bytes,
            std::vector<uint8_t>& pixels) {
  if (setjmp(errors.jump)) return false;
  jpeg_create_decompress(&info);
  jpeg_mem_src(&info, bytes.data(), static_cast<unsigned long>(bytes.size()));
  jpeg_read_header(&info, TRUE);
  if (info.num_components != 1 && info.num_components != 3) return false;
  info.out_color_space = JCS_RGB;
  jpeg_start_decompress(&info);
  const size_t stride = size_t{3} * info.output_width;
  pixels.resize(stride * info.output_height);
  while (info.output_scanline < info.output_height) {
    JSAMPROW rows[1] = {pixels.data() + stride * info.output_scanline};
    jpeg_read_scanlines(&info, rows, 1);
  }
  jpeg_finish_decompress(&info);
  return errors.base.num_warnings == 0;
}

}  // namespace

std::optional<std::vector<uint8_t>> jpeg_reference(std::span<const uint8_t> bytes) {
  jpeg_decompress_struct info{};
  Errors errors{};
  info.err = jpeg_std_error(&errors.base);
  errors.base.error_exit = [](j_common_ptr common) { std::longjmp(reinterpret_cast<Errors*>(common->err)->jump, 1); };
  errors.base.emit_message = count_warning;
  std::vector<uint8_t> pixels;
  const bool good = decode(info, errors, bytes, pixels);
  jpeg_destroy_decompress(&info);
  if (!good) return {};
  return pixels;
}

bool check_against_reference(std::span<const uint8_t> bytes) {
  constexpr DecodeLimits kLimits{.pixels = 1 << 18, .scans = 40, .scan_pixels = 1 << 21, .memory = size_t{1} << 24};
  Image image;
  DecodeInfo info;
  if (!error_of([&] { info = decode_image(bytes, 3, image, kLimits); }).empty() || info.warnings > 0 ||
      info.format != ImageFormat::jpeg)
    return false;
  const std::optional<std::vector<uint8_t>> reference = jpeg_reference(bytes);
  // Four components are converted by us, and libjpeg takes an unknown three for RGB as we do.
  if (!reference) {
    jpeg_decompress_struct header{};
    jpeg_error_mgr errors;
    header.err = jpeg_std_error(&errors);
    jpeg_create_decompress(&header);
    jpeg_mem_src(&header, bytes.data(), static_cast<unsigned long>(bytes.size()));
    jpeg_read_header(&header, TRUE);  // cannot fail: decode_image read it
    const bool four = header.num_components == 4;
    jpeg_destroy_decompress(&header);
    require(four, "what is accepted without a warning, libjpeg accepts without a warning");
    return false;
  }
  require(image.size() == reference->size() && std::memcmp(image.data(), reference->data(), image.size()) == 0,
          "the pixels are libjpeg's");

  const int h = info.height, w = info.width;
  const Window windows[] = {
      {0, 0, (h + 1) / 2, (w + 1) / 2}, {h / 2, w / 2, h - h / 2, w - w / 2}, {h / 3, w / 3, 1, 1}};
  for (const Window& window : windows) {
    std::memset(image.data(), 0x5A, image.size());
    require(error_of([&] { decode_image(bytes, 3, image, kLimits, [&](int, int) { return window; }); }).empty(),
            "a file is accepted whatever the region");
    for (int y = window.y; y < window.y + window.height; ++y) {
      const size_t at = 3 * (static_cast<size_t>(y) * static_cast<size_t>(w) + static_cast<size_t>(window.x));
      require(std::memcmp(image.data() + at, reference->data() + at, 3 * static_cast<size_t>(window.width)) == 0,
              "a region's pixels are libjpeg's");
    }
  }
  return true;
}

}  // namespace csml::fuzz
