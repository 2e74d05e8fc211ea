// The first page of a TIFF through libtiff.
#include <tiffio.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>

#include "data/formats.h"
#include "kernels/check.h"

namespace csml {
namespace {

/// What libtiff reads from, and the first thing it complained of.
struct Source {
  Bytes bytes;
  uint64_t at = 0;
  std::string error;
};

tmsize_t read_bytes(thandle_t handle, void* to, tmsize_t count) {
  auto& source = *static_cast<Source*>(handle);
  const uint64_t left = source.at < source.bytes.size() ? source.bytes.size() - source.at : 0;
  const auto n = std::min<uint64_t>(left, static_cast<uint64_t>(std::max<tmsize_t>(count, 0)));
  if (n > 0) std::memcpy(to, source.bytes.data() + source.at, n);
  source.at += n;
  return static_cast<tmsize_t>(n);
}

toff_t seek(thandle_t handle, toff_t offset, int whence) {
  auto& source = *static_cast<Source*>(handle);
  const uint64_t from = whence == SEEK_CUR ? source.at : whence == SEEK_END ? source.bytes.size() : 0;
  return source.at = from + offset;
}

int keep_error(TIFF*, void* user, const char*, const char* format, va_list arguments) {
  std::string& error = static_cast<Source*>(user)->error;
  char text[300];
  std::vsnprintf(text, sizeof text, format, arguments);
  if (error.empty()) error = text;
  return 1;
}

int ignore(TIFF*, void*, const char*, const char*, va_list) { return 1; }

using Tiff = std::unique_ptr<TIFF, void (*)(TIFF*)>;

Tiff open(Source& source, const DecodeLimits& limits) {
  const std::unique_ptr<TIFFOpenOptions, void (*)(TIFFOpenOptions*)> options(TIFFOpenOptionsAlloc(),
                                                                             TIFFOpenOptionsFree);
  TIFFOpenOptionsSetMaxSingleMemAlloc(options.get(), static_cast<tmsize_t>(limits.memory));
  TIFFOpenOptionsSetErrorHandlerExtR(options.get(), keep_error, &source);
  TIFFOpenOptionsSetWarningHandlerExtR(options.get(), ignore, nullptr);
  const auto no_write = [](thandle_t, void*, tmsize_t) -> tmsize_t { return 0; };
  const auto close = [](thandle_t) { return 0; };
  const auto size = [](thandle_t handle) -> toff_t { return static_cast<Source*>(handle)->bytes.size(); };
  return {
      TIFFClientOpenExt("", "rm", &source, read_bytes, no_write, seek, close, size, nullptr, nullptr, options.get()),
      TIFFClose};
}

template <class T>
T field(TIFF* tiff, uint32_t tag) {
  T value{};
  TIFFGetFieldDefaulted(tiff, tag, &value);
  return value;
}

/// Alpha that libtiff would multiply the colours with; here it is dropped.
bool has_plain_alpha(TIFF* tiff) {
  uint16_t count = 0;
  uint16_t* kinds = nullptr;  // belongs to the file
  return TIFFGetField(tiff, TIFFTAG_EXTRASAMPLES, &count, &kinds) && count > 0 && kinds[0] == EXTRASAMPLE_UNASSALPHA;
}

/// Gray or RGB with alpha behind, rows of interleaved samples of 8 or 16 bits (whose high byte is kept).
bool read_rows(TIFF* tiff, Image& rgb) {
  const int samples = field<uint16_t>(tiff, TIFFTAG_SAMPLESPERPIXEL),
            bits = field<uint16_t>(tiff, TIFFTAG_BITSPERSAMPLE);
  const int photometric = field<uint16_t>(tiff, TIFFTAG_PHOTOMETRIC);
  const bool gray = photometric == PHOTOMETRIC_MINISBLACK && samples == 2;
  const bool color = photometric == PHOTOMETRIC_RGB && samples == 4;
  if ((!gray && !color) || (bits != 8 && bits != 16) || TIFFIsTiled(tiff) ||
      field<uint16_t>(tiff, TIFFTAG_PLANARCONFIG) != PLANARCONFIG_CONTIG ||
      field<uint16_t>(tiff, TIFFTAG_ORIENTATION) != ORIENTATION_TOPLEFT)
    throw Error("TIFF with alpha in this layout is not supported: convert it to PNG");
  const size_t step = static_cast<size_t>(bits / 8), need = static_cast<size_t>(rgb.width()) * samples * step;
  std::vector<uint8_t> row(std::max(need, static_cast<size_t>(TIFFScanlineSize(tiff))));
  for (int y = 0; y < rgb.height(); ++y) {
    if (TIFFReadScanline(tiff, row.data(), static_cast<uint32_t>(y), 0) < 0) return false;
    for (int x = 0; x < rgb.width(); ++x)
      for (int c = 0; c < 3; ++c) {
        const size_t sample = static_cast<size_t>(x) * samples + (gray ? 0 : c);
        uint16_t wide = 0;
        if (bits == 16) std::memcpy(&wide, &row[2 * sample], 2);
        rgb.row(y)[3 * x + c] = bits == 16 ? static_cast<uint8_t>(wide >> 8) : row[sample];
      }
  }
  return true;
}

/// Everything else: libtiff makes it RGBA, upright.
bool read_converted(TIFF* tiff, Image& rgb) {
  const auto height = static_cast<uint32_t>(rgb.height()), width = static_cast<uint32_t>(rgb.width());
  std::vector<uint32_t> raster(static_cast<size_t>(height) * width);
  if (!TIFFReadRGBAImageOriented(tiff, width, height, raster.data(), ORIENTATION_TOPLEFT, 1)) return false;
  for (size_t i = 0; i < raster.size(); ++i) {
    rgb.data()[3 * i] = static_cast<uint8_t>(TIFFGetR(raster[i]));
    rgb.data()[3 * i + 1] = static_cast<uint8_t>(TIFFGetG(raster[i]));
    rgb.data()[3 * i + 2] = static_cast<uint8_t>(TIFFGetB(raster[i]));
  }
  return true;
}

}  // namespace

DecodeInfo decode_tiff(Bytes bytes, int channels, Image& out, const DecodeLimits& limits) {
  Source source{bytes, 0, {}};
  const auto failure = [&source] {
    return Error(cat("truncated or damaged TIFF: {}", source.error.empty() ? "it cannot be read" : source.error));
  };
  const Tiff tiff = open(source, limits);
  if (!tiff) throw failure();
  const int64_t height = field<uint32_t>(tiff.get(), TIFFTAG_IMAGELENGTH);
  const int64_t width = field<uint32_t>(tiff.get(), TIFFTAG_IMAGEWIDTH);
  check_extent(height, width, limits);
  char reason[1024] = "";
  const bool alpha = has_plain_alpha(tiff.get());
  if (!alpha && !TIFFRGBAImageOK(tiff.get(), reason))
    throw Error(cat("this kind of TIFF is not supported ({}): convert it to PNG", reason));
  Image raw;
  Image& rgb = channels == 3 ? out : raw;
  rgb.reset(static_cast<int>(height), static_cast<int>(width), 3);
  if (!(alpha ? read_rows(tiff.get(), rgb) : read_converted(tiff.get(), rgb))) throw failure();
  if (channels == 1) {
    out.reset(rgb.height(), rgb.width(), 1);
    convert_pixels(raw.data(), 3, out.data(), 1, static_cast<size_t>(height * width));
  }
  return {ImageFormat::tiff, rgb.height(), rgb.width(), 0, {}};
}

}  // namespace csml
