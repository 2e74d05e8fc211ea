#include "kernels/cpu/color.h"

#include "kernels/pixel.h"

namespace csml::cpu {

namespace {

void brightness(const Planes& image, float factor) {
  for (int c = 0; c < image.planes; ++c) {
    float* __restrict x = image.plane[c];
    const int64_t n = image.pixels();
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) x[i] = clamp_unit(x[i] * factor);
  }
}

void saturation(const Planes& image, float factor) {
  float* __restrict r = image.plane[0];
  float* __restrict g = image.plane[1];
  float* __restrict b = image.plane[2];
  const int64_t n = image.pixels();
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) saturate(r[i], g[i], b[i], factor);
}

void hue(const Planes& image, float turns) {
  float* __restrict r = image.plane[0];
  float* __restrict g = image.plane[1];
  float* __restrict b = image.plane[2];
  const int64_t n = image.pixels();
  const float shift = sixths_of(turns);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) turn_hue(r[i], g[i], b[i], shift);
}

}  // namespace

int contrast_position(const ColorParams& params) {
  if (params.order < 0 || params.contrast == 1) return kNoContrast;
  const int order = jitter_order(static_cast<int>(params.order));
  int position = 0;
  while (jitter_at(order, position) != kContrast) ++position;
  return position;
}

void jitter(const Planes& image, const ColorParams& params, int begin, int end) {
  if (begin >= end) return;
  const int order = jitter_order(static_cast<int>(params.order));
  for (int position = begin; position < end; ++position) {
    switch (jitter_at(order, position)) {
      case kBrightness:
        if (params.brightness != 1) brightness(image, params.brightness);
        break;
      case kContrast:
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

void add_gray(const Planes& image, double& total) {
  const float *r = image.plane[0], *g = image.plane[image.planes > 1 ? 1 : 0];
  const float* b = image.plane[image.planes > 1 ? 2 : 0];
  for (int64_t y = 0; y < image.height; ++y) {
    float sum = 0;
#pragma omp simd simdlen(8) reduction(+ : sum)
    for (int64_t i = y * image.width; i < (y + 1) * image.width; ++i) sum += gray_of(r[i], g[i], b[i]);
    total += sum;
  }
}

void contrast(const Planes& image, float factor, float mean) {
  const float shift = mean - mean * factor;
  for (int c = 0; c < image.planes; ++c) {
    float* __restrict x = image.plane[c];
    const int64_t n = image.pixels();
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) x[i] = clamp_unit(x[i] * factor + shift);
  }
}

void gray(Planes& image) {
  if (image.planes == 1) return;
  float* __restrict r = image.plane[0];
  const float *g = image.plane[1], *b = image.plane[2];
  const int64_t n = image.pixels();
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) r[i] = gray_of(r[i], g[i], b[i]);
  image.planes = 1;
}

void solarize(const Planes& image) {
  for (int c = 0; c < image.planes; ++c) {
    float* __restrict x = image.plane[c];
    const int64_t n = image.pixels();
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) x[i] = solarized(x[i]);
  }
}

}  // namespace csml::cpu
