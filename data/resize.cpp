#include "data/resize.h"

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/check.h"

namespace csml {
namespace {

constexpr int kBits = 22;  // fraction bits of a weight: 32 less 8 for the pixel and 2 for weights that overshoot

double triangle(double x) {
  x = std::abs(x);
  return x < 1 ? 1 - x : 0;
}

double cubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

/// Weights of outputs [begin, begin + count) of n over [low, high) of `size` inputs; formula in the header.
void make_axis(ResizeScratch::Axis& axis, std::vector<double>& real, int size, float low, float high, int n, int begin,
               int count, Filter filter) {
  const double scale = static_cast<double>(high - low) / n;  // the difference is a float, as in Pillow
  const double spread = std::max(scale, 1.0);
  const double support = (filter == Filter::bilinear ? 1.0 : 2.0) * spread;
  const double inverse = 1.0 / spread;
  axis.taps = static_cast<int>(std::ceil(support)) * 2 + 1;
  axis.first.resize(static_cast<size_t>(count));
  axis.count.resize(static_cast<size_t>(count));
  axis.weight.assign(static_cast<size_t>(count) * axis.taps, 0);
  real.resize(static_cast<size_t>(axis.taps));
  for (int i = 0; i < count; ++i) {
    const double center = low + (begin + i + 0.5) * scale;
    const int first = std::max(0, static_cast<int>(center - support + 0.5));
    const int end = std::min(size, static_cast<int>(center + support + 0.5));
    double sum = 0;
    for (int j = first; j < end; ++j) {
      const double x = (j - center + 0.5) * inverse;
      sum += real[static_cast<size_t>(j - first)] = filter == Filter::bilinear ? triangle(x) : cubic(x);
    }
    int32_t* weight = &axis.weight[static_cast<size_t>(i) * axis.taps];
    const double norm = sum != 0 ? 1.0 / sum : 1.0;
    for (int j = 0; j < end - first; ++j) {
      const double w = real[static_cast<size_t>(j)] * norm * (1 << kBits);
      weight[j] = static_cast<int32_t>(w < 0 ? w - 0.5 : w + 0.5);
    }
    axis.first[static_cast<size_t>(i)] = first;
    axis.count[static_cast<size_t>(i)] = end - first;
  }
}

inline uint8_t clip(int32_t sum) { return static_cast<uint8_t>(std::clamp(sum >> kBits, 0, 255)); }

/// Outputs [begin, width) of one row of three channels.
void horizontal_rgb(const uint8_t* in, const ResizeScratch::Axis& axis, int begin, int width, uint8_t* out) {
  for (int i = begin; i < width; ++i) {
    const uint8_t* p = in + 3 * axis.first[static_cast<size_t>(i)];
    const int count = axis.count[static_cast<size_t>(i)];
    const int32_t* weight = &axis.weight[static_cast<size_t>(i) * axis.taps];
    int32_t r = 1 << (kBits - 1), g = r, b = r;
    for (int j = 0; j < count; ++j) {
      r += p[3 * j] * weight[j];
      g += p[3 * j + 1] * weight[j];
      b += p[3 * j + 2] * weight[j];
    }
    out[3 * i] = clip(r), out[3 * i + 1] = clip(g), out[3 * i + 2] = clip(b);
  }
}

#ifdef __AVX2__

constexpr int kGroup = 4;     // taps of one step
constexpr int kLowBits = 11;  // a weight is high * 2^11 + low: both fit the 16-bit multiply-add, the sum stays exact

/// Per output and group of four taps: (high0, high1), (high2, high3), (low0, low1), (low2, low3), zero where no tap is.
void make_groups(ResizeScratch::Axis& axis) {
  const int groups = (axis.taps + kGroup - 1) / kGroup;
  axis.group.assign(axis.first.size() * static_cast<size_t>(groups) * 2 * kGroup, 0);
  for (size_t i = 0; i < axis.first.size(); ++i) {
    const int32_t* weight = &axis.weight[i * static_cast<size_t>(axis.taps)];
    int16_t* to = &axis.group[i * static_cast<size_t>(groups) * 2 * kGroup];
    for (int j = 0; j < axis.count[i]; ++j) {
      int16_t* at = to + j / kGroup * 2 * kGroup + j % kGroup;
      at[0] = static_cast<int16_t>(weight[j] >> kLowBits);
      at[kGroup] = static_cast<int16_t>(weight[j] & ((1 << kLowBits) - 1));
    }
  }
}

/// Two rows of three channels side by side, four taps a step. `available`: bytes that may be read from the start of the
/// second row. Returns how many outputs it made; the others would read further than that
/// or write past the row.
int horizontal_two_rows(const uint8_t* in0, const uint8_t* in1, ptrdiff_t available, const ResizeScratch::Axis& axis,
                        int width, uint8_t* out0, uint8_t* out1) {
  const int groups = (axis.taps + kGroup - 1) / kGroup;
  const __m256i pair0 = _mm256_broadcastsi128_si256(  // bytes of taps 0 and 1: r r g g b b, widened to 16 bits
      _mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
  const __m256i pair1 =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1));
  const __m256i half = _mm256_set1_epi32(1 << (kBits - 1));
  int i = 0;
  for (; i + 1 < width; ++i) {  // a pixel's fourth byte is overwritten by the next pixel
    const ptrdiff_t at = ptrdiff_t{3} * axis.first[static_cast<size_t>(i)];
    const int steps = (axis.count[static_cast<size_t>(i)] + kGroup - 1) / kGroup;
    if (at + 3 * kGroup * steps + 4 > available) break;
    const int16_t* weight = &axis.group[static_cast<size_t>(i) * groups * 2 * kGroup];
    __m256i high = _mm256_setzero_si256(), low = half;
    for (int s = 0; s < steps; ++s, weight += 2 * kGroup) {
      const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in0 + at + 3 * kGroup * s));
      const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in1 + at + 3 * kGroup * s));
      const __m256i pixels = _mm256_inserti128_si256(_mm256_castsi128_si256(a), b, 1);
      const __m256i p0 = _mm256_shuffle_epi8(pixels, pair0), p1 = _mm256_shuffle_epi8(pixels, pair1);
      int32_t w[4];
      std::memcpy(w, weight, sizeof w);
      high = _mm256_add_epi32(high, _mm256_madd_epi16(p0, _mm256_set1_epi32(w[0])));
      high = _mm256_add_epi32(high, _mm256_madd_epi16(p1, _mm256_set1_epi32(w[1])));
      low = _mm256_add_epi32(low, _mm256_madd_epi16(p0, _mm256_set1_epi32(w[2])));
      low = _mm256_add_epi32(low, _mm256_madd_epi16(p1, _mm256_set1_epi32(w[3])));
    }
    __m256i sum = _mm256_srai_epi32(_mm256_add_epi32(_mm256_slli_epi32(high, kLowBits), low), kBits);
    sum = _mm256_packus_epi32(sum, sum);  // packing clips to [0, 65535], then to [0, 255]
    sum = _mm256_packus_epi16(sum, sum);
    const int32_t pixel0 = _mm256_extract_epi32(sum, 0), pixel1 = _mm256_extract_epi32(sum, 4);
    std::memcpy(out0 + 3 * i, &pixel0, 4);
    std::memcpy(out1 + 3 * i, &pixel1, 4);
  }
  return i;
}

#endif

void horizontal_gray(const uint8_t* in, const ResizeScratch::Axis& axis, int width, uint8_t* out) {
  for (int i = 0; i < width; ++i) {
    const uint8_t* p = in + axis.first[static_cast<size_t>(i)];
    const int32_t* weight = &axis.weight[static_cast<size_t>(i) * axis.taps];
    int32_t sum = 1 << (kBits - 1);
    for (int j = 0; j < axis.count[static_cast<size_t>(i)]; ++j) sum += p[j] * weight[j];
    out[i] = clip(sum);
  }
}

/// out[i] = sum_j rows[j][i] * weight[j] over n bytes of each row.
void vertical(const uint8_t* rows, ptrdiff_t stride, const int32_t* weight, int count, int n, uint8_t* out) {
  constexpr int kBlock = 64;  // sums that stay in registers
  int i = 0;
  for (; i + kBlock <= n; i += kBlock) {
    int32_t sum[kBlock];
    for (int b = 0; b < kBlock; ++b) sum[b] = 1 << (kBits - 1);
    for (int j = 0; j < count; ++j) {
      const uint8_t* p = rows + j * stride + i;
      const int32_t w = weight[j];
      for (int b = 0; b < kBlock; ++b) sum[b] += p[b] * w;
    }
    for (int b = 0; b < kBlock; ++b) out[i + b] = clip(sum[b]);
  }
  for (; i < n; ++i) {
    int32_t sum = 1 << (kBits - 1);
    for (int j = 0; j < count; ++j) sum += rows[j * stride + i] * weight[j];
    out[i] = clip(sum);
  }
}

}  // namespace

void resize(const ImageView& source, const Box& box, int height, int width, const Window& window, Filter filter,
            uint8_t* out, ResizeScratch& scratch) {
  CHECK(source.channels == 1 || source.channels == 3, "images have 1 or 3 channels, not {}", source.channels);
  CHECK(box.x0 >= 0 && box.y0 >= 0 && box.x1 <= source.width && box.y1 <= source.height && box.x0 < box.x1 &&
            box.y0 < box.y1,
        "box ({}, {}, {}, {}) does not lie in an image of {} x {} pixels", box.x0, box.y0, box.x1, box.y1, source.width,
        source.height);
  CHECK(window.x >= 0 && window.y >= 0 && window.width > 0 && window.height > 0 && window.width <= width - window.x &&
            window.height <= height - window.y,
        "window {}+{} x {}+{} does not lie in {} x {} pixels", window.x, window.width, window.y, window.height, width,
        height);
  const int c = source.channels;
  const int row_bytes = window.width * c;

  // A pass over an unchanged axis is the identity.
  const bool wide = width != source.width || box.x0 != 0 || box.x1 != source.width;
  const bool high = height != source.height || box.y0 != 0 || box.y1 != source.height;
  int y0 = window.y, rows = window.height;
  if (high) {
    auto& axis = scratch.vertical;
    make_axis(axis, scratch.real, source.height, box.y0, box.y1, height, window.y, window.height, filter);
    y0 = axis.first.front();
    rows = axis.first.back() + axis.count.back() - y0;
  }
  const uint8_t* middle = source.row(y0) + ptrdiff_t{window.x} * c;
  ptrdiff_t stride = source.stride;
  if (wide) {
    const auto& axis = scratch.horizontal;
    make_axis(scratch.horizontal, scratch.real, source.width, box.x0, box.x1, width, window.x, window.width, filter);
    uint8_t* to = out;
    if (high) {
      scratch.rows.resize(static_cast<size_t>(rows) * row_bytes);
      to = scratch.rows.data();
    }
    int y = 0;
    if (c == 1)
      for (; y < rows; ++y) horizontal_gray(source.row(y0 + y), axis, window.width, to + ptrdiff_t{y} * row_bytes);
#ifdef __AVX2__
    if (c == 3) make_groups(scratch.horizontal);
    for (; y + 1 < rows; y += 2) {
      const uint8_t *in0 = source.row(y0 + y), *in1 = source.row(y0 + y + 1);
      uint8_t *out0 = to + ptrdiff_t{y} * row_bytes, *out1 = out0 + row_bytes;
      const ptrdiff_t available = (source.height - 1 - (y0 + y + 1)) * source.stride + ptrdiff_t{3} * source.width;
      const int done = horizontal_two_rows(in0, in1, available, axis, window.width, out0, out1);
      horizontal_rgb(in0, axis, done, window.width, out0);
      horizontal_rgb(in1, axis, done, window.width, out1);
    }
#endif
    for (; y < rows; ++y) horizontal_rgb(source.row(y0 + y), axis, 0, window.width, to + ptrdiff_t{y} * row_bytes);
    if (!high) return;
    middle = to, stride = row_bytes;
  }
  for (int y = 0; y < window.height; ++y) {
    uint8_t* to = out + ptrdiff_t{y} * row_bytes;
    if (!high) {
      std::memcpy(to, middle + y * stride, static_cast<size_t>(row_bytes));
      continue;
    }
    const auto& axis = scratch.vertical;
    vertical(middle + (axis.first[static_cast<size_t>(y)] - y0) * stride, stride,
             &axis.weight[static_cast<size_t>(y) * axis.taps], axis.count[static_cast<size_t>(y)], row_bytes, to);
  }
}

void resize(const ImageView& source, int height, int width, Filter filter, uint8_t* out, ResizeScratch& scratch) {
  resize(source, {0, 0, static_cast<float>(source.width), static_cast<float>(source.height)}, height, width,
         {0, 0, height, width}, filter, out, scratch);
}

}  // namespace csml
