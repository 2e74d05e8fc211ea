#include "data/augment.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/check.h"

namespace csml {
namespace {

/// Python's round(): to the nearest integer, halves to even.
int round_even(double x) { return static_cast<int>(std::nearbyint(x)); }

void check_probability(float p, const char* name) {
  if (!(p >= 0 && p <= 1)) throw UsageError(cat("augment.{} = {}: a probability lies between 0 and 1", name, p));
}

/// Gamma(shape, 1); Marsaglia and Tsang, "A Simple Method for Generating Gamma Variables", 2000.
double draw_gamma(Random& random, double shape) {
  if (shape < 1) {
    const double u = (random.bits() + 0.5) / 4294967296.0;
    return draw_gamma(random, shape + 1) * std::pow(u, 1 / shape);
  }
  const double d = shape - 1.0 / 3, c = 1 / std::sqrt(9 * d);
  for (;;) {
    const double x = random.normal();
    const double v = (1 + c * x) * (1 + c * x) * (1 + c * x);
    if (v <= 0) continue;
    const double u = (random.bits() + 0.5) / 4294967296.0;
    if (std::log(u) < 0.5 * x * x + d - d * v + d * std::log(v)) return d * v;
  }
}

}  // namespace

void check_augment(const AugmentConfig& c) {
  check_probability(c.jitter_p, "jitter_p");
  check_probability(c.gray_p, "gray_p");
  check_probability(c.blur_p, "blur_p");
  check_probability(c.solarize_p, "solarize_p");
  check_probability(c.flip_p, "flip_p");
  if (c.crop_size < 1 || c.crop_size > 4096)
    throw UsageError(cat("augment.crop_size = {}: must be 1 to 4096 pixels", c.crop_size));
  if (!(c.scale_min > 0 && c.scale_min <= c.scale_max && c.scale_max <= 1))
    throw UsageError(cat("augment.scale = {} to {}: must be ascending in (0, 1]", c.scale_min, c.scale_max));
  if (!(c.ratio_min > 0 && c.ratio_min <= c.ratio_max && c.ratio_max <= 100))
    throw UsageError(cat("augment.ratio = {} to {}: must be ascending in (0, 100]", c.ratio_min, c.ratio_max));
  if (!(c.brightness >= 0 && c.contrast >= 0 && c.saturation >= 0))
    throw UsageError("augment.brightness, contrast and saturation must not be negative");
  if (!(c.hue >= 0 && c.hue <= 0.5f)) throw UsageError(cat("augment.hue = {}: must be 0 to 0.5 turns", c.hue));
  if (!(c.blur_sigma_min >= 0 && c.blur_sigma_min <= c.blur_sigma_max && c.blur_sigma_max <= 100))
    throw UsageError(
        cat("augment.blur_sigma = {} to {}: must be ascending in [0, 100]", c.blur_sigma_min, c.blur_sigma_max));
  if (c.channels != 1 && c.channels != 3) throw UsageError(cat("augment.channels = {}: must be 1 or 3", c.channels));
  for (int i = 0; i < c.channels; ++i)
    if (!(c.std[static_cast<size_t>(i)] > 0)) throw UsageError("augment.std must be positive");
}

CropBox draw_crop(const AugmentConfig& config, int height, int width, uint64_t seed, uint64_t epoch, uint64_t sample,
                  uint32_t view) {
  Random random(seed, Purpose::crop, epoch, sample, view);
  const bool flip = random.uniform() < config.flip_p;
  const double area = static_cast<double>(height) * width;
  const float log_min = std::log(config.ratio_min), log_max = std::log(config.ratio_max);
  for (int attempt = 0; attempt < 10; ++attempt) {
    const double target = area * random.uniform(config.scale_min, config.scale_max);
    const double ratio = std::exp(static_cast<double>(random.uniform(log_min, log_max)));
    const int w = round_even(std::sqrt(target * ratio));
    const int h = round_even(std::sqrt(target / ratio));
    if (w < 1 || w > width || h < 1 || h > height) continue;
    const auto y = static_cast<int>(random.below(static_cast<uint32_t>(height - h + 1)));
    const auto x = static_cast<int>(random.below(static_cast<uint32_t>(width - w + 1)));
    return {y, x, h, w, flip};
  }
  int w = width, h = height;
  const double ratio = static_cast<double>(width) / height;
  if (ratio < config.ratio_min) {
    h = std::clamp(round_even(w / static_cast<double>(config.ratio_min)), 1, height);
  } else if (ratio > config.ratio_max) {
    w = std::clamp(round_even(h * static_cast<double>(config.ratio_max)), 1, width);
  }
  return {(height - h) / 2, (width - w) / 2, h, w, flip};
}

ColorParams draw_color(const AugmentConfig& config, uint64_t seed, uint64_t epoch, uint64_t sample, uint32_t view) {
  Random random(seed, Purpose::color, epoch, sample, view);
  const auto factor = [&random](float strength) { return random.uniform(std::max(0.0f, 1 - strength), 1 + strength); };
  // Everything is drawn whether or not it is used, so that changing one probability leaves the other draws alone.
  ColorParams drawn;
  const bool jitter = random.uniform() < config.jitter_p;
  const auto order = static_cast<float>(random.below(24));
  const float brightness = factor(config.brightness), contrast = factor(config.contrast);
  const float saturation = factor(config.saturation), hue = random.uniform(-config.hue, config.hue);
  if (jitter) {
    drawn.order = order;
    drawn.brightness = brightness, drawn.contrast = contrast, drawn.saturation = saturation, drawn.hue = hue;
  }
  drawn.gray = random.uniform() < config.gray_p ? 1.0f : 0.0f;
  const bool blur = random.uniform() < config.blur_p;
  const float sigma = random.uniform(config.blur_sigma_min, config.blur_sigma_max);
  drawn.blur_sigma = blur ? sigma : 0.0f;
  drawn.solarize = random.uniform() < config.solarize_p ? 1.0f : 0.0f;
  return drawn;
}

float draw_beta(Random& random, float alpha) {
  CHECK(alpha > 0 && std::isfinite(alpha), "Beta({0}, {0}): alpha must be positive", alpha);
  if (alpha == 1) return random.uniform();
  if (alpha == 2) {
    const float a = random.uniform(), b = random.uniform(), c = random.uniform();
    return std::max(std::min(a, b), std::min(std::max(a, b), c));
  }
  const double x = draw_gamma(random, alpha), y = draw_gamma(random, alpha);
  return x + y > 0 ? static_cast<float>(x / (x + y)) : 0.5f;
}

CutMixDraw draw_cutmix(uint64_t seed, uint64_t step, int size, float alpha) {
  CHECK(size > 0, "CutMix of images of {} pixels", size);
  Random random(seed, Purpose::cutmix, step);
  const float share = draw_beta(random, alpha);
  const int side = static_cast<int>(size * std::sqrt(1.0 - share));
  const auto center_x = static_cast<int>(random.below(static_cast<uint32_t>(size)));
  const auto center_y = static_cast<int>(random.below(static_cast<uint32_t>(size)));
  const auto clip = [size](int v) { return std::clamp(v, 0, size); };
  CutMixDraw draw;
  draw.box = {clip(center_y - side / 2), clip(center_x - side / 2), clip(center_y + side / 2),
              clip(center_x + side / 2)};
  const double area = static_cast<double>(draw.box[2] - draw.box[0]) * (draw.box[3] - draw.box[1]);
  draw.lambda = static_cast<float>(1 - area / (static_cast<double>(size) * size));
  return draw;
}

EvalGeometry eval_geometry(const EvalTransform& transform, int height, int width) {
  if (transform.resize == 0) {
    if (height != transform.size || width != transform.size)
      throw Error(cat("the image has {} x {} pixels where {} x {} are expected: set a resize or the option size={}",
                      width, height, transform.size, transform.size, transform.size));
    return {height, width, {0, 0, height, width}};
  }
  CHECK(transform.size <= transform.resize, "central crop of {} pixels from a short side of {}", transform.size,
        transform.resize);
  EvalGeometry g;
  const auto long_side = [&](int longer, int shorter) {
    return static_cast<int>(static_cast<double>(transform.resize) * longer / shorter);
  };
  g.height = width <= height ? long_side(height, width) : transform.resize;
  g.width = width <= height ? transform.resize : long_side(width, height);
  g.crop = {round_even((g.height - transform.size) / 2.0), round_even((g.width - transform.size) / 2.0), transform.size,
            transform.size};
  return g;
}

void eval_image(const ImageView& image, const EvalTransform& transform, uint8_t* out, ResizeScratch& scratch) {
  const EvalGeometry g = eval_geometry(transform, image.height, image.width);
  resize(image, {0, 0, static_cast<float>(image.width), static_cast<float>(image.height)}, g.height, g.width, g.crop,
         transform.filter, out, scratch);
}

}  // namespace csml
