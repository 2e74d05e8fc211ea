// ColorParams: the colour part of one view's augmentation, drawn by data/, applied by the augment kernel.
#pragma once

namespace csml {

/// Parameters of the colour part of one view's augmentation: one row of kColumns floats per image, in this order.
/// Applied in this order: jitter (its four in `order`), gray, blur, solarize, flip, normalise.
struct ColorParams {
  static constexpr int kColumns = 12;
  float brightness = 1;  // x * b
  float contrast = 1;    // (x - m) * c + m, m = mean of the gray image
  float saturation = 1;  // (x - gray) * s + gray
  float hue = 0;         // turns of the HSV hue, in [-0.5, 0.5]
  float order = -1;      // index 0..23 of the permutation of (brightness, contrast, saturation, hue); -1: no jitter
  float gray = 0;        // 1: all channels become 0.299 r + 0.587 g + 0.114 b
  float blur_sigma = 0;  // pixels; 0: no blur
  float solarize = 0;    // 1: x >= 0.5 becomes 1 - x
  float flip = 0;        // 1: mirrored left to right
  float unused[3] = {0, 0, 0};
};
static_assert(sizeof(ColorParams) == ColorParams::kColumns * sizeof(float));

}  // namespace csml
