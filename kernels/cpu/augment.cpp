#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/scratch.h"
#include "kernels/pixel.h"

namespace csml::cpu {

namespace {

constexpr int kPlanes = 3;

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

/// One image as planes of floats in [0, 1]; planes = 1 for images of one channel and after conversion to gray.
struct Image {
  std::array<float*, kPlanes> plane{};
  int planes = 1;
  int64_t height = 0, width = 0;

  int64_t pixels() const { return height * width; }
};

void brightness(const Image& image, float factor) {
  for (int c = 0; c < image.planes; ++c) {
    float* __restrict x = image.plane[c];
    const int64_t n = image.pixels();
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) x[i] = clamp_unit(x[i] * factor);
  }
}

/// Mean of the gray image; rows in float, their sum in double.
float gray_mean(const Image& image) {
  const float *r = image.plane[0], *g = image.plane[image.planes > 1 ? 1 : 0];
  const float* b = image.plane[image.planes > 1 ? 2 : 0];
  double total = 0;
  for (int64_t y = 0; y < image.height; ++y) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = y * image.width; i < (y + 1) * image.width; ++i) sum += gray_of(r[i], g[i], b[i]);
    total += sum;
  }
  return static_cast<float>(total / static_cast<double>(image.pixels()));
}

void contrast(const Image& image, float factor) {
  const float mean = gray_mean(image), shift = mean - mean * factor;
  for (int c = 0; c < image.planes; ++c) {
    float* __restrict x = image.plane[c];
    const int64_t n = image.pixels();
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) x[i] = clamp_unit(x[i] * factor + shift);
  }
}

void saturation(const Image& image, float factor) {
  float* __restrict r = image.plane[0];
  float* __restrict g = image.plane[1];
  float* __restrict b = image.plane[2];
  const int64_t n = image.pixels();
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) saturate(r[i], g[i], b[i], factor);
}

void hue(const Image& image, float turns) {
  float* __restrict r = image.plane[0];
  float* __restrict g = image.plane[1];
  float* __restrict b = image.plane[2];
  const int64_t n = image.pixels();
  const float shift = sixths_of(turns);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) turn_hue(r[i], g[i], b[i], shift);
}

/// Keeps one plane, the gray image.
void gray(Image& image) {
  if (image.planes == 1) return;
  float* __restrict r = image.plane[0];
  const float *g = image.plane[1], *b = image.plane[2];
  const int64_t n = image.pixels();
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) r[i] = gray_of(r[i], g[i], b[i]);
  image.planes = 1;
}

void solarize(const Image& image) {
  for (int c = 0; c < image.planes; ++c) {
    float* __restrict x = image.plane[c];
    const int64_t n = image.pixels();
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) x[i] = solarized(x[i]);
  }
}

void jitter(const Image& image, const ColorParams& params) {
  const int order = jitter_order(static_cast<int>(params.order));
  for (int position = 0; position < 4; ++position) {
    switch (jitter_at(order, position)) {
      case kBrightness:
        if (params.brightness != 1) brightness(image, params.brightness);
        break;
      case kContrast:
        if (params.contrast != 1) contrast(image, params.contrast);
        break;
      case kSaturation:
        if (params.saturation != 1 && image.planes == kPlanes) saturation(image, params.saturation);
        break;
      case kHue:
        if (params.hue != 0 && image.planes == kPlanes) hue(image, params.hue);
        break;
    }
  }
}

/// taps[0..radius] of the Gaussian exp(-i^2 / (2 sigma^2)), normalised so that the symmetric filter sums to 1.
void gaussian(float sigma, int64_t radius, float* taps) {
  double sum = 1;
  for (int64_t i = 1; i <= radius; ++i) sum += 2 * std::exp(-0.5 * i * i / (static_cast<double>(sigma) * sigma));
  for (int64_t i = 0; i <= radius; ++i)
    taps[i] = static_cast<float>(std::exp(-0.5 * i * i / (static_cast<double>(sigma) * sigma)) / sum);
}

/// y[x] = taps[0] rows[0][x] + sum_k taps[k] (rows[-k][x] + rows[k][x]), x in [0, n); y overlaps no row.
void filter_row(float* y, int64_t n, const float* taps, int64_t radius, const float* const* rows) {
  typedef float Vector __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));  // sums stay in registers
  constexpr int64_t kLanes = kVectorBytes / sizeof(float), kStrip = 2 * kLanes;
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
void blur(const Image& image, float sigma, float* temporary) {
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

void load(const uint8_t* pixels, const Image& image) {
  constexpr float kScale = 1.f / 255;
  const int64_t n = image.pixels();
  float* __restrict r = image.plane[0];
  if (image.planes == 1) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) r[i] = static_cast<float>(pixels[i]) * kScale;
    return;
  }
  float* __restrict g = image.plane[1];
  float* __restrict b = image.plane[2];
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    r[i] = static_cast<float>(pixels[3 * i]) * kScale;
    g[i] = static_cast<float>(pixels[3 * i + 1]) * kScale;
    b[i] = static_cast<float>(pixels[3 * i + 2]) * kScale;
  }
}

/// y = x * scale + shift per channel: (x - mean) / std.
struct Normalise {
  std::array<float, kPlanes> scale{}, shift{};
};

void store(const Image& image, bool flip, const Normalise& normalise, int channels, float* __restrict y) {
  const int64_t width = image.width;
  if (flip)
    for (int c = 0; c < image.planes; ++c)
      for (int64_t row = 0; row < image.height; ++row)
        std::reverse(image.plane[c] + row * width, image.plane[c] + (row + 1) * width);
  const int64_t n = image.pixels();
  const std::array<float, kPlanes>&scale = normalise.scale, &shift = normalise.shift;
  const float* r = image.plane[0];
  if (channels == 1) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) y[i] = r[i] * scale[0] + shift[0];
    return;
  }
  const float *g = image.plane[image.planes > 1 ? 1 : 0], *b = image.plane[image.planes > 1 ? 2 : 0];
  const float scale_r = scale[0], scale_g = scale[1], scale_b = scale[2];
  const float shift_r = shift[0], shift_g = shift[1], shift_b = shift[2];
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    y[3 * i] = r[i] * scale_r + shift_r;
    y[3 * i + 1] = g[i] * scale_g + shift_g;
    y[3 * i + 2] = b[i] * scale_b + shift_b;
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
    CHECK(p.blur_sigma >= 0 && p.blur_sigma <= kMaxBlurSigma, "augment: image {} has blur sigma {}, must be in [0, {}]",
          i, p.blur_sigma, kMaxBlurSigma);
  }
  if (pixels == 0) return;

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
      float* planes = scratch.get<float>((channels + 1) * pixels);
      Image image{.planes = channels, .height = height, .width = width};
      for (int c = 0; c < channels; ++c) image.plane[c] = planes + c * pixels;
      load(from, image);
      if (p.order >= 0) jitter(image, p);
      if (p.gray != 0) gray(image);
      if (p.blur_sigma > 0) blur(image, p.blur_sigma, planes + channels * pixels);
      if (p.solarize != 0) solarize(image);
      store(image, p.flip != 0, normalise, channels, to);
    }
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
