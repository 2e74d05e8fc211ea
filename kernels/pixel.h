// The colour operations of ColorParams on one RGB pixel, in float: what the augment kernels of CPU and GPU share.
#pragma once

#include <cmath>

#include "kernels/color.h"
#include "kernels/random.h"

namespace csml {

constexpr float kRed = 0.299f, kGreen = 0.587f, kBlue = 0.114f;  // ITU-R BT.601 luma, as PIL and torchvision
constexpr float kMaxBlurSigma = 1000;

enum Jitter { kBrightness, kContrast, kSaturation, kHue };

/// The lexicographic permutation `order` (0..23) of the four, two bits each, the first lowest.
CSML_HD constexpr int jitter_order(int order) {
  int left = kBrightness | kContrast << 2 | kSaturation << 4 | kHue << 6, code = 0;
  for (int position = 0, base = 6; position < 4; ++position) {
    const int pick = 2 * (order / base);
    code |= (left >> pick & 3) << 2 * position;
    left = (left & ((1 << pick) - 1)) | left >> (pick + 2) << pick;
    order %= base;
    base = base == 6 ? 2 : 1;
  }
  return code;
}
CSML_HD constexpr Jitter jitter_at(int code, int position) { return static_cast<Jitter>(code >> 2 * position & 3); }

/// NaN stays NaN.
CSML_HD constexpr float clamp_unit(float x) {
  const float low = x < 0.f ? 0.f : x;
  return low > 1.f ? 1.f : low;
}

CSML_HD constexpr float gray_of(float r, float g, float b) { return kRed * r + kGreen * g + kBlue * b; }

/// x times factor, moved so that gray values stay: (x - gray) * factor + gray, clamped.
CSML_HD inline void saturate(float& r, float& g, float& b, float factor) {
  const float shift = gray_of(r, g, b) * (1 - factor);
  r = clamp_unit(r * factor + shift);
  g = clamp_unit(g * factor + shift);
  b = clamp_unit(b * factor + shift);
}

/// max - spread * clamp(min(k, 4 - k), 0, 1), k = sixths mod 6, for sixths in [0, 12).
CSML_HD constexpr float channel_of(float sixths, float top, float spread) {
  const float k = sixths - (sixths >= 6.f ? 6.f : 0.f), other = 4.f - k;
  return top - spread * clamp_unit(other < k ? other : k);
}

/// Sixths of a turn in [0, 6) for any number of turns.
CSML_HD inline float sixths_of(float turns) { return 6.f * (turns - std::floor(turns)); }

/// HSV hue turned by `shift` sixths of a turn (0..6); value and saturation stay. Branchless: with h in sixths of a
/// turn, channel n = V - V S clamp(min(k, 4 - k), 0, 1), k = (n + h) mod 6, n = 5, 3, 1 for r, g, b, and V S = max -
/// min.
CSML_HD inline void turn_hue(float& r, float& g, float& b, float shift) {
  const float high = g < b ? b : g, top = r < high ? high : r;
  const float deep = b < g ? b : g, low = deep < r ? deep : r;
  const float spread = top - low;
  const float inverse = 1.f / (spread > 0.f ? spread : 1.f);
  const bool is_red = r == top, is_green = g == top;
  const float red_side = g - b, green_side = b - r, blue_side = r - g;
  const float side = is_red ? red_side : (is_green ? green_side : blue_side);
  float h = (is_red ? 6.f : (is_green ? 2.f : 4.f)) + side * inverse + shift;  // in [1, 13)
  h -= h >= 6.f ? 6.f : 0.f;
  h -= h >= 6.f ? 6.f : 0.f;
  r = clamp_unit(channel_of(h + 5.f, top, spread));
  g = clamp_unit(channel_of(h + 3.f, top, spread));
  b = clamp_unit(channel_of(h + 1.f, top, spread));
}

/// x below 0.5, else 1 - x: the smaller of the two.
CSML_HD constexpr float solarized(float x) {
  const float negative = 1.f - x;
  return x < negative ? x : negative;
}

/// Index i of a row of n mirrored at its edges without repeating them (... 2 1 0 1 2 ...), for any i.
CSML_HD constexpr int64_t reflect(int64_t i, int64_t n) {
  if (i >= 0 && i < n) return i;
  if (n == 1) return 0;
  const int64_t period = 2 * (n - 1);
  i = (i % period + period) % period;
  return i < n ? i : period - i;
}

}  // namespace csml
