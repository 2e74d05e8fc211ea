// Draws the parameters of augmented views. Crops are applied on the host (data/resize.h), colours by the augment
// kernel. Every draw is keyed by (seed, epoch, sample, view), so a view can be replayed alone and on any machine.
#pragma once

#include <array>
#include <cstdint>

#include "data/resize.h"
#include "kernels/color.h"
#include "kernels/random.h"

namespace csml {

/// The recipe of one view. Defaults: MoCo v2's "aug+" at 224 pixels (SimCLR's distortions, milder).
struct AugmentConfig {
  int crop_size = 224;
  float scale_min = 0.2f, scale_max = 1.0f;  // share of the image's area
  float ratio_min = 3.0f / 4, ratio_max = 4.0f / 3;
  float brightness = 0.4f, contrast = 0.4f, saturation = 0.4f, hue = 0.1f, jitter_p = 0.8f;
  float gray_p = 0.2f;
  float blur_p = 0.5f, blur_sigma_min = 0.1f, blur_sigma_max = 2.0f;
  float solarize_p = 0.0f;
  float flip_p = 0.5f;
  Filter filter = Filter::bilinear;
  int channels = 3;
  std::array<float, 4> mean{0.485f, 0.456f, 0.406f, 0}, std{0.229f, 0.224f, 0.225f, 1};
};

/// Throws UsageError naming the field when a value cannot be used (negative scale, probability above one, …).
void check_augment(const AugmentConfig& config);

struct CropBox {
  int y = 0, x = 0, height = 0, width = 0;
  bool flip = false;
};

/// torchvision's RandomResizedCrop with flip: ten attempts of area = H W U(scale), ratio = exp(U(log ratio)),
/// w = round(sqrt(area ratio)), h = round(sqrt(area / ratio)); the first that fits is placed uniformly; else the
/// central crop nearest to the allowed ratios.
CropBox draw_crop(const AugmentConfig& config, int height, int width, uint64_t seed, uint64_t epoch, uint64_t sample,
                  uint32_t view);

/// Jitter factors U(max(0, 1 - b), 1 + b), hue U(-h, h), their order, gray, blur, solarize. flip is left 0: it belongs
/// to the crop's stream.
ColorParams draw_color(const AugmentConfig& config, uint64_t seed, uint64_t epoch, uint64_t sample, uint32_t view);

/// lambda = share of the first image that remains; box = y0, x0, y1, x1 (half open) of what the second one covers.
struct CutMixDraw {
  float lambda = 1;
  std::array<int, 4> box{0, 0, 0, 0};
};

/// CutMix (Yun et al. 2019): lambda' ~ Beta(alpha, alpha), side int(size sqrt(1 - lambda')), centre uniform, box
/// clipped to the image, lambda = 1 - area(box) / size^2. One draw per step. alpha = 2 is the median of three uniforms,
/// exactly.
CutMixDraw draw_cutmix(uint64_t seed, uint64_t step, int size, float alpha = 2.0f);

/// Beta(alpha, alpha) from a stream; alpha > 0.
float draw_beta(Random& random, float alpha);

/// Un-augmented images for features and evaluation. resize = 0: the image as it is, which must then be size x size.
struct EvalTransform {
  int resize = 256;  // short side
  int size = 224;    // central crop
  Filter filter = Filter::bilinear;
};

/// torchvision's Resize(short side) and CenterCrop: the resized image's extents and the crop inside it.
struct EvalGeometry {
  int height = 0, width = 0;
  Window crop;
};
EvalGeometry eval_geometry(const EvalTransform& transform, int height, int width);

/// Applies the transform; out u8 [size, size, channels]. Throws Error when an as-is image has another size.
void eval_image(const ImageView& image, const EvalTransform& transform, uint8_t* out, ResizeScratch& scratch);

}  // namespace csml
