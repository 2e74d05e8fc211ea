// Bytes of an image file -> u8 pixels: JPEG through libjpeg-turbo, PNG and BMP through stb_image, binary PGM and PPM, and,
// where their libraries were there at the build, WebP (libwebp), TIFF (libtiff) and GIF (giflib). All behind caps.
//
// The format is taken from the first bytes, never from the file's name. What the pixels mean follows Pillow's
// convert("RGB") and convert("L"), so that training sees what torchvision would show:
// - EXIF orientation (but that of a TIFF; data/exif.h) and ICC profiles are not applied; alpha is dropped, not composited;
// - the first frame of an animation and the first page of a TIFF are the image;
// - 16-bit PNG samples keep their high byte (Pillow clips 16-bit gray instead);
// - CMYK and YCCK are read as Adobe writes them, inverted: r = (1 - c)(1 - k);
// - luma = (19595 r + 38470 g + 7471 b + 32768) >> 16.
// A file that ends early is an error. Damage inside a JPEG that its decoder can step over is a counted warning.
//
// JPEG files that are baseline and whole take a faster way to the same pixels (data/baseline_jpeg.h), which can leave
// out what a crop does not need. Whether a file is accepted never depends on the region; warnings may: what lies behind
// the region is not looked at.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "data/image.h"
#include "data/resize.h"

namespace csml {

/// What a file may ask for. Every cap depends on the file alone, never on time.
struct DecodeLimits {
  size_t file_bytes = size_t{64} << 20;
  int64_t pixels = 100'000'000;         // height * width
  int side = 65'500;                    // longest side, pixels
  int scans = 500;                      // of a progressive JPEG
  int64_t scan_pixels = 4'000'000'000;  // scans * pixels of a progressive JPEG: bounds its work
  size_t memory = size_t{1} << 30;      // bytes a decoder may hold beside the result
  bool accept_truncated = false;        // a JPEG that ends early: keep what is there, the rest is gray
};

enum class ImageFormat { jpeg, png, bmp, pnm, webp, tiff, gif };

struct DecodeInfo {
  ImageFormat format = ImageFormat::jpeg;
  int height = 0, width = 0;
  int warnings = 0;           // damage that the decoder stepped over
  std::string first_warning;  // its text; empty without warnings
};

/// The only pixels that are asked for, chosen when the image's extent is known.
using ChooseRegion = std::function<Window(int height, int width)>;

/// Decodes a whole file held in memory into `out` with 3 (RGB) or 1 (luma) channels. With a region, `out` still has the
/// image's extent, but pixels outside the region may be undefined. Throws Error saying what is wrong with the bytes
/// ("truncated JPEG: …", "not an image: …"); the caller adds the file's name. Thread-safe.
DecodeInfo decode_image(std::span<const uint8_t> bytes, int channels, Image& out, const DecodeLimits& limits = {},
                        const ChooseRegion& region = {});

/// The name ends in a suffix of a format that this build reads (.jpg, .png, …), in any case.
bool is_image_name(const std::string& name);
/// Those suffixes, for messages: "jpg, jpeg, png, …".
std::string image_suffixes();

/// Reads a regular file of at most limits.file_bytes bytes. Throws Error with the reason (without the path).
void read_file(const std::string& path, std::vector<uint8_t>& bytes, const DecodeLimits& limits = {});

/// Luma of one RGB pixel as Pillow's convert("L") computes it.
inline uint8_t luma(int r, int g, int b) {
  return static_cast<uint8_t>((19595 * r + 38470 * g + 7471 * b + 32768) >> 16);
}

}  // namespace csml
