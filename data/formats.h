// Private to data/: one decoder a file format, and what they share. decode.cpp holds the table of formats.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "data/decode.h"

namespace csml {

using Bytes = std::span<const uint8_t>;

/// Throws Error for an empty image and for one beyond the limits.
void check_extent(int64_t height, int64_t width, const DecodeLimits& limits);

/// n pixels with `from` channels (1, 3, or 4 = inverted CMYK) -> `to` channels (1 or 3). Reads and writes forward;
/// in == out is allowed only for to <= from.
void convert_pixels(const uint8_t* in, int from, uint8_t* out, int to, size_t n);

// A whole file of that format -> out, with `channels` channels (1 or 3). Throw Error saying what is wrong with it.
DecodeInfo decode_jpeg(Bytes bytes, int channels, Image& out, const DecodeLimits& limits, const ChooseRegion& region);
DecodeInfo decode_png(Bytes bytes, int channels, Image& out, const DecodeLimits& limits);
DecodeInfo decode_bmp(Bytes bytes, int channels, Image& out, const DecodeLimits& limits);
DecodeInfo decode_pnm(Bytes bytes, int channels, Image& out, const DecodeLimits& limits);
DecodeInfo decode_webp(Bytes bytes, int channels, Image& out, const DecodeLimits& limits);
DecodeInfo decode_tiff(Bytes bytes, int channels, Image& out, const DecodeLimits& limits);
DecodeInfo decode_gif(Bytes bytes, int channels, Image& out, const DecodeLimits& limits);

}  // namespace csml
