#ifdef __AVX__
#include <immintrin.h>
#endif

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <utility>

#include "kernels/cpu/color.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/scratch.h"
#include "kernels/pixel.h"

namespace csml::cpu {

namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

constexpr int kLanes = kVectorBytes / sizeof(float);
typedef float Vector __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));

/// taps[0..radius] of the Gaussian exp(-i^2 / (2 sigma^2)), normalised so that the symmetric filter sums to 1.
void gaussian(float sigma, int64_t radius, float* taps) {
  double sum = 1;
  for (int64_t i = 1; i <= radius; ++i) sum += 2 * std::exp(-0.5 * i * i / (static_cast<double>(sigma) * sigma));
  for (int64_t i = 0; i <= radius; ++i)
    taps[i] = static_cast<float>(std::exp(-0.5 * i * i / (static_cast<double>(sigma) * sigma)) / sum);
}

/// y[x] = taps[0] rows[0][x] + sum_k taps[k] (rows[-k][x] + rows[k][x]), x in [0, n); y overlaps no row.
void filter_row(float* y, int64_t n, const float* taps, int64_t radius, const float* const* rows) {
  constexpr int64_t kStrip = 2 * kLanes;  // its sums stay in registers
  const auto at = [](const float* p) -> const Vector* { return reinterpret_cast<const Vector*>(p); };
  for (int64_t strip = 0; strip < n && n >= kStrip; strip += kStrip) {
    const int64_t x = std::min(strip, n - kStrip);  // the last strip may repeat columns
    Vector low = taps[0] * *at(rows[0] + x), high = taps[0] * *at(rows[0] + x + kLanes);
    for (int64_t k = 1; k <= radius; ++k) {
      const float *before = rows[-k] + x, *after = rows[k] + x;
      low += taps[k] * (*at(before) + *at(after));
      high += taps[k] * (*at(before + kLanes) + *at(after + kLanes));
    }
    *reinterpret_cast<Vector*>(y + x) = low;
    *reinterpret_cast<Vector*>(y + x + kLanes) = high;
  }
  for (int64_t x = 0; x < n && n < kStrip; ++x) {
    float sum = taps[0] * rows[0][x];
    for (int64_t k = 1; k <= radius; ++k) sum += taps[k] * (rows[-k][x] + rows[k][x]);
    y[x] = sum;
  }
}

/// Separable Gaussian of each plane, along rows into `temporary` [H, W], then along columns back.
void blur(const Planes& image, float sigma, float* temporary) {
  const int64_t radius = static_cast<int64_t>(std::ceil(3 * sigma)), height = image.height, width = image.width;
  thread_local Scratch float_scratch, pointer_scratch;
  float* taps = float_scratch.get<float>(radius + 1 + width + 2 * radius);
  float* padded = taps + radius + 1 + radius;
  const float** rows = pointer_scratch.get<const float*>(2 * radius + 1) + radius;
  gaussian(sigma, radius, taps);
  for (int c = 0; c < image.planes; ++c) {
    float* plane = image.plane[c];
    for (int64_t k = -radius; k <= radius; ++k) rows[k] = padded + k;
    for (int64_t y = 0; y < height; ++y) {
      const float* row = plane + y * width;
      std::copy(row, row + width, padded);
      for (int64_t k = 1; k <= radius; ++k) {
        padded[-k] = row[reflect(-k, width)];
        padded[width - 1 + k] = row[reflect(width - 1 + k, width)];
      }
      filter_row(temporary + y * width, width, taps, radius, rows);
    }
    for (int64_t y = 0; y < height; ++y) {
      for (int64_t k = -radius; k <= radius; ++k) rows[k] = temporary + reflect(y + k, height) * width;
      filter_row(plane + y * width, width, taps, radius, rows);
    }
  }
}

/// Channel c of kLanes pixels, lane by lane, out of x[0], x[1], x[2], which hold them interleaved.
template <int c, size_t... lane>
Vector deinterleave(const Vector* x, std::index_sequence<lane...>) {
  constexpr auto place = [](size_t l) { return static_cast<int>(3 * l) + c; };
  const Vector low = __builtin_shufflevector(x[0], x[1], (place(lane) < 2 * kLanes ? place(lane) : -1)...);
  return __builtin_shufflevector(low, x[2], (place(lane) < 2 * kLanes ? int{lane} : place(lane) - kLanes)...);
}

/// The reverse: x[part] out of one vector per channel, of pixels in order or mirrored.
template <int part, bool mirrored, size_t... lane>
Vector interleave(Vector r, Vector g, Vector b, std::index_sequence<lane...>) {
  constexpr auto channel = [](size_t l) { return (part * kLanes + static_cast<int>(l)) % 3; };
  constexpr auto pixel = [](size_t l) {
    const int at = (part * kLanes + static_cast<int>(l)) / 3;
    return mirrored ? kLanes - 1 - at : at;
  };
  const Vector rg = __builtin_shufflevector(r, g,
                                            (channel(lane) == 0   ? pixel(lane)
                                             : channel(lane) == 1 ? kLanes + pixel(lane)
                                                                  : -1)...);
  return __builtin_shufflevector(rg, b, (channel(lane) == 2 ? kLanes + pixel(lane) : int{lane})...);
}

/// kLanes bytes as floats.
inline Vector floats(const uint8_t* bytes) {
#if defined(__AVX512F__)  // zero masks: g++ 12 warns of the plain intrinsics in its own headers (GCC bug 105593)
  const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
  return reinterpret_cast<Vector>(_mm512_maskz_cvtepi32_ps(0xFFFF, _mm512_maskz_cvtepu8_epi32(0xFFFF, x)));
#elif defined(__AVX2__)
  const __m128i x = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes));
  return reinterpret_cast<Vector>(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(x)));
#else
  Vector x;
  for (int lane = 0; lane < kLanes; ++lane) x[lane] = bytes[lane];
  return x;
#endif
}

void load(const uint8_t* pixels, const Planes& image) {
  constexpr float kScale = 1.f / 255;
  constexpr std::make_index_sequence<kLanes> kEach;
  const int64_t n = image.pixels();
  float* __restrict r = image.plane[0];
  if (image.planes == 1) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) r[i] = static_cast<float>(pixels[i]) * kScale;
    return;
  }
  float* __restrict g = image.plane[1];
  float* __restrict b = image.plane[2];
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    Vector x[3];
    for (int part = 0; part < 3; ++part) x[part] = floats(pixels + 3 * i + part * kLanes) * kScale;
    *reinterpret_cast<Vector*>(r + i) = deinterleave<0>(x, kEach);
    *reinterpret_cast<Vector*>(g + i) = deinterleave<1>(x, kEach);
    *reinterpret_cast<Vector*>(b + i) = deinterleave<2>(x, kEach);
  }
  for (; i < n; ++i) {
    r[i] = static_cast<float>(pixels[3 * i]) * kScale;
    g[i] = static_cast<float>(pixels[3 * i + 1]) * kScale;
    b[i] = static_cast<float>(pixels[3 * i + 2]) * kScale;
  }
}

/// y = x * scale + shift per channel: (x - mean) / std.
struct Normalise {
  std::array<float, kPlanes> scale{}, shift{};
};

/// Writes past the caches, which a whole batch would only flush; y aligned to the vector.
inline void stream(float* y, Vector x) {
#if defined(__AVX512F__)
  _mm512_stream_ps(y, reinterpret_cast<__m512>(x));
#elif defined(__AVX__)
  _mm256_stream_ps(y, reinterpret_cast<__m256>(x));
#else
  *reinterpret_cast<Vector*>(y) = x;
#endif
}

/// Makes what was streamed visible to other threads.
inline void end_streams() {
#ifdef __AVX__
  _mm_sfence();
#endif
}

/// Normalised rows into y [H, W, channels]; `large`: y is part of more than the caches hold.
template <bool mirrored>
void store(const Planes& image, const Normalise& normalise, int channels, bool large, float* __restrict y) {
  constexpr std::make_index_sequence<kLanes> kEach;
  const int64_t width = image.width;
  for (int64_t row = 0; row < image.height; ++row, y += width * channels) {
    std::array<const float*, kPlanes> x;
    for (int c = 0; c < channels; ++c) x[c] = image.plane[c < image.planes ? c : 0] + row * width;
    const bool streams = large && reinterpret_cast<uintptr_t>(y) % kVectorBytes == 0;
    const auto write = [streams](float* to, Vector v) {
      if (streams) return stream(to, v);
      *reinterpret_cast<Vector*>(to) = v;
    };
    int64_t i = 0;
    for (; channels == kPlanes && i + kLanes <= width; i += kLanes) {
      Vector v[kPlanes];
      for (int c = 0; c < kPlanes; ++c)
        v[c] = *reinterpret_cast<const Vector*>(x[c] + (mirrored ? width - kLanes - i : i)) * normalise.scale[c] +
               normalise.shift[c];
      write(y + 3 * i, interleave<0, mirrored>(v[0], v[1], v[2], kEach));
      write(y + 3 * i + kLanes, interleave<1, mirrored>(v[0], v[1], v[2], kEach));
      write(y + 3 * i + 2 * kLanes, interleave<2, mirrored>(v[0], v[1], v[2], kEach));
    }
    for (; i < width; ++i)
      for (int c = 0; c < channels; ++c)
        y[i * channels + c] = x[c][mirrored ? width - 1 - i : i] * normalise.scale[c] + normalise.shift[c];
  }
}

/// Nothing but normalisation: bytes to floats in one pass.
void normalise_only(const uint8_t* pixels, int64_t n, int channels, const Normalise& normalise, float* __restrict y) {
  std::array<float, kPlanes> scale{};
  for (int c = 0; c < channels; ++c) scale[c] = normalise.scale[c] / 255;
  const auto& shift = normalise.shift;
  if (channels == 1) {
    for (int64_t i = 0; i < n; ++i) y[i] = static_cast<float>(pixels[i]) * scale[0] + shift[0];
    return;
  }
  for (int64_t i = 0; i < n; ++i) {
    y[3 * i] = static_cast<float>(pixels[3 * i]) * scale[0] + shift[0];
    y[3 * i + 1] = static_cast<float>(pixels[3 * i + 1]) * scale[1] + shift[1];
    y[3 * i + 2] = static_cast<float>(pixels[3 * i + 2]) * scale[2] + shift[2];
  }
}

bool changes_nothing(const ColorParams& p) {
  return p.order < 0 && p.gray == 0 && p.blur_sigma == 0 && p.solarize == 0 && p.flip == 0;
}

/// All of `p` on one image. Only contrast (the mean) and blur need the whole image; what lies between them is done
/// block by block, while the block is in the nearest cache. `planes`: room for channels + 1 of them.
void augment_image(const uint8_t* pixels, const ColorParams& p, int channels, int64_t height, int64_t width,
                   const Normalise& normalise, bool large, float* planes, float* __restrict y) {
  constexpr int64_t kBlockPixels = 1024;
  const int64_t plane_size = height * width, block_height = std::max<int64_t>(1, kBlockPixels / width);
  const int contrast_at = contrast_position(p), jitter_end = p.order >= 0 ? 4 : 0;
  const bool contrasts = contrast_at != kNoContrast, blurs = p.blur_sigma > 0, keeps_planes = contrasts || blurs;

  const auto for_blocks = [&](auto&& work) {
    for (int64_t row = 0; row < height; row += block_height) {
      Planes block{.planes = channels, .height = std::min(block_height, height - row), .width = width};
      for (int c = 0; c < channels; ++c) block.plane[c] = planes + c * plane_size + (keeps_planes ? row * width : 0);
      work(block, row * width);
    }
  };
  const auto finish = [&](Planes& block, int64_t at) {
    if (p.gray != 0) block.planes = 1;
    if (p.solarize != 0) solarize(block);
    (p.flip != 0 ? store<true> : store<false>)(block, normalise, channels, large, y + at * channels);
  };
  const auto after_jitter = [&](Planes& block, int64_t at) {
    if (p.gray != 0) gray(block);
    if (!blurs) finish(block, at);
  };

  double total = 0;
  for_blocks([&](Planes& block, int64_t at) {
    load(pixels + at * channels, block);
    jitter(block, p, 0, std::min(contrast_at, jitter_end));
    if (contrasts) {
      add_gray(block, total);
    } else {
      after_jitter(block, at);
    }
  });
  if (contrasts) {
    const auto mean = static_cast<float>(total / static_cast<double>(plane_size));
    for_blocks([&](Planes& block, int64_t at) {
      contrast(block, p.contrast, mean);
      jitter(block, p, contrast_at + 1, jitter_end);
      after_jitter(block, at);
    });
  }
  if (blurs) {
    Planes image{.planes = p.gray != 0 ? 1 : channels, .height = height, .width = width};
    for (int c = 0; c < image.planes; ++c) image.plane[c] = planes + c * plane_size;
    blur(image, p.blur_sigma, planes + channels * plane_size);
    for_blocks(finish);
  }
}

}  // namespace

void augment(const Backend::Augment& args) {
  const Shape& shape = args.images.shape;
  CHECK(shape.rank() == 4 && (shape[3] == 1 || shape[3] == kPlanes) && args.y.shape == shape,
        "augment: images {} into y {}: both must be [N, H, W, 3] or [N, H, W, 1]", shape.text(), args.y.shape.text());
  CHECK(!args.params || args.params.shape == (Shape{shape[0], ColorParams::kColumns}),
        "augment: params is {}, must be [{}, {}]", args.params.shape.text(), shape[0], ColorParams::kColumns);
  const int64_t count = shape[0], height = shape[1], width = shape[2], pixels = height * width;
  const int channels = static_cast<int>(shape[3]);
  const uint8_t* images = args.images.as<uint8_t>();
  const float* params = args.params ? args.params.as<float>() : nullptr;
  float* y = args.y.as<float>();

  Normalise normalise;
  for (int c = 0; c < channels; ++c) {
    CHECK(args.std[c] > 0, "augment: std[{}] = {} must be positive", c, args.std[c]);
    normalise.scale[c] = static_cast<float>(1.0 / args.std[c]);
    normalise.shift[c] = static_cast<float>(-static_cast<double>(args.mean[c]) / args.std[c]);
  }
  const auto params_of = [=](int64_t i) {
    ColorParams p;
    if (params) std::memcpy(static_cast<void*>(&p), params + i * ColorParams::kColumns, sizeof p);
    return p;
  };
  for (int64_t i = 0; i < count; ++i) {
    const ColorParams p = params_of(i);
    CHECK(p.order >= -1 && p.order < 24, "augment: image {} has jitter order {}, must be -1 or 0..23", i, p.order);
    CHECK(std::isfinite(p.brightness + p.contrast + p.saturation + p.hue),
          "augment: image {} has brightness {}, contrast {}, saturation {}, hue {}: all must be finite", i,
          p.brightness, p.contrast, p.saturation, p.hue);
    CHECK(p.blur_sigma >= 0 && p.blur_sigma <= kMaxBlurSigma, "augment: image {} has blur sigma {}, must be in [0, {}]",
          i, p.blur_sigma, kMaxBlurSigma);
  }
  if (pixels == 0) return;

  constexpr size_t kCacheBytes = size_t{4} << 20;
  const bool large = args.y.bytes() > kCacheBytes;
  parallel_for(count, 1, [=](int64_t begin, int64_t end) {
    thread_local Scratch scratch;
    for (int64_t i = begin; i < end; ++i) {
      const ColorParams p = params_of(i);
      const uint8_t* from = images + i * pixels * channels;
      float* to = y + i * pixels * channels;
      if (changes_nothing(p)) {
        normalise_only(from, pixels, channels, normalise, to);
        continue;
      }
      augment_image(from, p, channels, height, width, normalise, large, scratch.get<float>((channels + 1) * pixels),
                    to);
    }
    end_streams();
  });
}

void cut_mix(const Backend::CutMix& args) {
  const Shape& shape = args.y.shape;
  CHECK(shape.rank() == 4 && args.a.shape == shape && args.b.shape == shape, "cut_mix: a {}, b {}, y {} must be equal",
        args.a.shape.text(), args.b.shape.text(), shape.text());
  CHECK(args.a.dtype == args.y.dtype && args.b.dtype == args.y.dtype, "cut_mix: types {}, {}, {} must be equal",
        name_of(args.a.dtype), name_of(args.b.dtype), name_of(args.y.dtype));
  CHECK(args.box.size() == 4, "cut_mix: box is {}, must be [4]", args.box.shape.text());
  const int32_t* box = args.box.as<int32_t>();
  const int64_t height = shape[1], width = shape[2];
  const int64_t y0 = std::clamp<int64_t>(box[0], 0, height), x0 = std::clamp<int64_t>(box[1], 0, width);
  const int64_t y1 = std::clamp<int64_t>(box[2], y0, height), x1 = std::clamp<int64_t>(box[3], x0, width);

  const size_t pixel = static_cast<size_t>(shape[3]) * size_of(args.y.dtype), image = height * width * pixel;
  const char *a = static_cast<const char*>(args.a.data), *b = static_cast<const char*>(args.b.data);
  char* y = static_cast<char*>(args.y.data);
  parallel_for(shape[0], 1, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      std::memcpy(y + i * image, a + i * image, image);
      for (int64_t row = y0; row < y1; ++row) {
        const size_t at = i * image + (row * width + x0) * pixel;
        std::memcpy(y + at, b + at, (x1 - x0) * pixel);
      }
    }
  });
}

}  // namespace csml::cpu
