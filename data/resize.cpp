#include "data/resize.h"

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include <algorithm>
#include <array>
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

constexpr int kGroup = 4;  // taps of one step of the vector loops

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define CSML_RESIZE_VNNI

// Products of unsigned pixels and signed bytes, four taps at once (VNNI). A weight is l0 + 2^8 l1 + 2^16 l2 with signed
// bytes l: three such sums, put together with two shifts, are exact.
constexpr int kLimbs = 3;

/// l0, l1, l2 of up to four weights, a byte each; zero where no tap is.
std::array<uint32_t, kLimbs> limbs_of(const int32_t* weight, int count) {
  std::array<uint32_t, kLimbs> words{};
  for (int j = 0; j < std::min(count, kGroup); ++j) {
    int32_t rest = weight[j];
    for (uint32_t& word : words) {
      const auto limb = static_cast<int8_t>(rest);
      word |= uint32_t{static_cast<uint8_t>(limb)} << 8 * j;
      rest = (rest - limb) >> 8;
    }
  }
  return words;
}

/// Operators and zero masks instead of some intrinsics: g++ 12 warns of its own headers (GCC bug 105593).
typedef int32_t Words __attribute__((vector_size(64)));

inline __m512i sum_of(const __m512i* limb) {
  const auto l0 = reinterpret_cast<Words>(limb[0]), l1 = reinterpret_cast<Words>(limb[1]),
             l2 = reinterpret_cast<Words>(limb[2]);
  return reinterpret_cast<__m512i>((l0 + (l1 << 8) + (l2 << 16)) >> kBits);
}

/// Per four outputs, step of four taps and limb: 16 words, output by output, each four times. Returns the steps.
int pack(ResizeScratch::Axis& axis) {
  const size_t groups = axis.first.size() / 4;
  const int steps = (*std::max_element(axis.count.begin(), axis.count.end()) + kGroup - 1) / kGroup;
  axis.packed.resize(groups * static_cast<size_t>(steps) * kLimbs * 16);
  uint32_t* to = axis.packed.data();
  for (size_t g = 0; g < groups; ++g)
    for (int s = 0; s < steps; ++s, to += kLimbs * 16)
      for (size_t o = 0; o < 4; ++o) {
        const size_t i = 4 * g + o;
        const auto words =
            limbs_of(axis.weight.data() + i * static_cast<size_t>(axis.taps) + kGroup * s, axis.count[i] - kGroup * s);
        for (size_t l = 0; l < kLimbs; ++l) std::fill_n(to + 16 * l + 4 * o, 4, words[l]);
      }
  return steps;
}

/// One row of three channels, four outputs and four taps a step. `available`: bytes that may be read from its start.
/// Returns how many outputs it made; the others would read further than that.
int horizontal_vector(const uint8_t* in, ptrdiff_t available, const ResizeScratch::Axis& axis, int steps, int width,
                      uint8_t* out) {
  const __m512i planar =
      _mm512_maskz_broadcast_i32x4(0xFFFF, _mm_setr_epi8(0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11, -1, -1, -1, -1));
  const __m128i dense = _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
  const auto load = [](const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); };
  const int bytes = 3 * kGroup * steps;
  const uint32_t* weight = axis.packed.data();
  int i = 0;
  for (; i + 4 <= width; i += 4) {
    const int* first = &axis.first[static_cast<size_t>(i)];
    if (ptrdiff_t{3} * first[3] + bytes + 4 > available) break;
    const uint8_t *p0 = in + 3 * first[0], *p1 = in + 3 * first[1], *p2 = in + 3 * first[2], *p3 = in + 3 * first[3];
    __m512i limb[kLimbs] = {_mm512_set1_epi32(1 << (kBits - 1)), _mm512_setzero_si512(), _mm512_setzero_si512()};
    for (int at = 0; at < bytes; at += 3 * kGroup, weight += kLimbs * 16) {
      __m512i x = _mm512_inserti32x4(_mm512_castsi128_si512(load(p0 + at)), load(p1 + at), 1);
      x = _mm512_inserti32x4(_mm512_inserti32x4(x, load(p2 + at), 2), load(p3 + at), 3);
      x = _mm512_shuffle_epi8(x, planar);
      for (int l = 0; l < kLimbs; ++l) limb[l] = _mm512_dpbusd_epi32(limb[l], x, _mm512_loadu_si512(weight + 16 * l));
    }
    const __m512i sum = _mm512_maskz_max_epi32(0xFFFF, sum_of(limb), _mm512_setzero_si512());
    const __m128i pixels = _mm_shuffle_epi8(_mm512_maskz_cvtusepi32_epi8(0xFFFF, sum), dense);
    _mm_mask_storeu_epi8(out + 3 * i, 0x0FFF, pixels);
  }
  return i;
}

/// out[i] = sum_j rows[j][i] * weight[j] over n >= 64 bytes of each row, which `out` does not overlap.
void vertical_vector(const uint8_t* rows, ptrdiff_t stride, const int32_t* weight, int count, int n, uint8_t* out) {
  for (int block = 0; block < n; block += 64) {
    const int i = std::min(block, n - 64);  // the last one may repeat bytes
    __m512i limb[4][kLimbs];                // of bytes 0..3, 4..7, 8..11, 12..15 of each 16
    for (auto& part : limb) {
      part[0] = _mm512_set1_epi32(1 << (kBits - 1));
      part[1] = part[2] = _mm512_setzero_si512();
    }
    for (int j = 0; j < count; j += kGroup) {
      const auto row = [&](int k) { return _mm512_loadu_si512(rows + std::min(j + k, count - 1) * stride + i); };
      const __m512i a = row(0), b = row(1), c = row(2), d = row(3);
      const __m512i ab0 = _mm512_unpacklo_epi8(a, b), ab1 = _mm512_unpackhi_epi8(a, b);
      const __m512i cd0 = _mm512_unpacklo_epi8(c, d), cd1 = _mm512_unpackhi_epi8(c, d);
      const __m512i taps[4] = {_mm512_unpacklo_epi16(ab0, cd0), _mm512_unpackhi_epi16(ab0, cd0),
                               _mm512_unpacklo_epi16(ab1, cd1), _mm512_unpackhi_epi16(ab1, cd1)};
      const auto words = limbs_of(weight + j, count - j);
      for (int part = 0; part < 4; ++part)
        for (int l = 0; l < kLimbs; ++l)
          limb[part][l] = _mm512_dpbusd_epi32(limb[part][l], taps[part],
                                              _mm512_set1_epi32(static_cast<int>(words[static_cast<size_t>(l)])));
    }
    const __m512i low = _mm512_packus_epi32(sum_of(limb[0]), sum_of(limb[1]));
    const __m512i high = _mm512_packus_epi32(sum_of(limb[2]), sum_of(limb[3]));
    _mm512_storeu_si512(out + i, _mm512_packus_epi16(low, high));
  }
}

#elif defined(__AVX2__)

constexpr int kLowBits = 11;  // a weight is high * 2^11 + low: both fit the 16-bit multiply-add, the sum stays exact

/// Per output and group of four taps: (high0, high1), (high2, high3), (low0, low1), (low2, low3), zero where no tap is.
void pack(ResizeScratch::Axis& axis) {
  const int groups = (axis.taps + kGroup - 1) / kGroup;
  axis.packed.assign(axis.first.size() * static_cast<size_t>(groups) * kGroup, 0);
  for (size_t i = 0; i < axis.first.size(); ++i) {
    const int32_t* weight = &axis.weight[i * static_cast<size_t>(axis.taps)];
    uint32_t* to = &axis.packed[i * static_cast<size_t>(groups) * kGroup];
    for (int j = 0; j < axis.count[i]; ++j) {
      uint32_t* at = to + j / kGroup * kGroup + j % kGroup / 2;
      const uint32_t high = static_cast<uint16_t>(weight[j] >> kLowBits), low = weight[j] & ((1 << kLowBits) - 1);
      at[0] |= high << 16 * (j % 2);
      at[2] |= low << 16 * (j % 2);
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
    const uint32_t* weight = &axis.packed[static_cast<size_t>(i) * groups * kGroup];
    __m256i high = _mm256_setzero_si256(), low = half;
    for (int s = 0; s < steps; ++s, weight += kGroup) {
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
#ifdef CSML_RESIZE_VNNI
  if (n >= 64) return vertical_vector(rows, stride, weight, count, n, out);
#endif
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
#if defined(CSML_RESIZE_VNNI)
    const int steps = c == 3 ? pack(scratch.horizontal) : 0;
    for (; y < rows; ++y) {
      const uint8_t* in = source.row(y0 + y);
      const ptrdiff_t available = (source.height - 1 - (y0 + y)) * source.stride + ptrdiff_t{3} * source.width;
      const int done = horizontal_vector(in, available, axis, steps, window.width, to + ptrdiff_t{y} * row_bytes);
      horizontal_rgb(in, axis, done, window.width, to + ptrdiff_t{y} * row_bytes);
    }
#elif defined(__AVX2__)
    if (c == 3) pack(scratch.horizontal);
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
