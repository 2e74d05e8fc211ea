// The scan of a whole baseline JPEG -> u8 pixels of one region, byte-identical to libjpeg-turbo's slow integer DCT and
// fancy upsampling. Faster than libjpeg because only what the region needs is transformed, entropy decoding stops at
// the region's end, and one table look-up yields up to two runs and their coefficients (data/jpeg_entropy.h).
//
// The caller parses the header (data/decode.cpp, through libjpeg) and stays the judge of every file: whatever is not
// ordinary here (damage, a missing end, unusual sampling) is refused without a word and decoded by libjpeg instead.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "data/image.h"
#include "data/resize.h"

namespace csml {

/// Header of a file with one scan that holds all its components (1, or 3 = Y Cb Cr), Huffman-coded, 8 bits.
struct BaselineScan {
  struct Huffman {
    const uint8_t* counts = nullptr;  // [17] codes of each length; [0] is unused
    const uint8_t* values = nullptr;  // [256] symbols in ascending order of their codes
  };
  struct Component {
    int h = 1, v = 1;                 // sampling factors
    const uint16_t* quant = nullptr;  // [64] row by row
    Huffman dc, ac;
  };
  int height = 0, width = 0, components = 0;
  std::array<Component, 3> component;
  int restart_interval = 0;       // MCUs; 0: none
  std::span<const uint8_t> data;  // from behind the scan's header to the end of the file
};

/// Writes the region's pixels into `out`, which has the image's extent and 1 channel (of a one-component file) or 3;
/// the other pixels of `out` stay undefined. False: not done, let libjpeg decode the file. It is done only if nothing
/// but restart markers stands between the scan's header and the end-of-image marker; then a whole decode by libjpeg
/// could not fail either, wherever the region ends. Needs AVX2; always false without. Thread-safe.
bool decode_baseline(const BaselineScan& scan, const Window& region, Image& out);

}  // namespace csml
