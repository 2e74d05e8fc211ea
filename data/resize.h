// Antialiased resampling of u8 images, bit-exact with Pillow's Image.resize.
//
// Two passes, horizontal first, with a u8 image between them. For output position i of n over the input interval
// [a, b): scale s = (b - a) / n, centre c = a + (i + 0.5) s, f = max(s, 1);
//   y[i] = clip((2^21 + sum_j x[j] k_ij) >> 22),  k_ij = round(2^22 w_ij / sum_j w_ij),  w_ij = filter((j + 0.5 - c) /
//   f)
// over the input positions j within support * f of c. Bilinear: triangle, support 1. Bicubic: a = -0.5, support 2.
#pragma once

#include <cstdint>
#include <vector>

#include "data/image.h"

namespace csml {

enum class Filter { bilinear, bicubic };

/// Source rectangle in pixels; fractions allowed, single precision as Pillow's `box`.
struct Box {
  float x0 = 0, y0 = 0, x1 = 0, y1 = 0;
};

/// A rectangle of the resized image: the only pixels that are computed.
struct Window {
  int y = 0, x = 0, height = 0, width = 0;
};

/// Memory reused from call to call, one per thread.
struct ResizeScratch {
  struct Axis {
    std::vector<int> first, count;  // per output position: first input position, number of taps
    std::vector<int32_t> weight;    // [outputs, taps]
    std::vector<uint32_t> packed;   // the same as the vector loop reads them
    int taps = 0;
  };
  Axis horizontal, vertical;
  std::vector<double> real;
  std::vector<uint8_t> rows;
};

/// Resamples `box` of `source` to height x width and writes the pixels of `window` to `out`, rows without gaps,
/// [window.height, window.width, channels]. Pixels outside the box but inside the source take part at the box's edges
/// (as in Pillow); to resample a crop on its own, pass source.crop(…) with its full box. Channels: 1 or 3.
void resize(const ImageView& source, const Box& box, int height, int width, const Window& window, Filter filter,
            uint8_t* out, ResizeScratch& scratch);

/// The whole source to height x width.
void resize(const ImageView& source, int height, int width, Filter filter, uint8_t* out, ResizeScratch& scratch);

}  // namespace csml
