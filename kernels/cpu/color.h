// The colour operations of the augment kernel on planes of floats; formulas in kernels/pixel.h. color.cpp is compiled
// for finite numbers, whose minimum and maximum are one instruction each, and for the widest vectors.
#pragma once

#include <array>
#include <cstdint>

#include "kernels/color.h"

namespace csml::cpu {

constexpr int kPlanes = 3;

/// Rows of one image as planes of floats in [0, 1]; planes = 1 for images of one channel and after conversion to gray.
struct Planes {
  std::array<float*, kPlanes> plane{};
  int planes = 1;
  int64_t height = 0, width = 0;

  int64_t pixels() const { return height * width; }
};

/// Position of contrast in the jitter's order, 0 .. 3; kNoContrast where it changes nothing.
constexpr int kNoContrast = 4;
int contrast_position(const ColorParams& params);

/// The jitter's operations at positions [begin, end) of its order, contrast left out.
void jitter(const Planes& image, const ColorParams& params, int begin, int end);

/// Adds the gray image to `total`: each row is summed in float, in eight lanes.
void add_gray(const Planes& image, double& total);

/// x * factor + mean (1 - factor), clamped; mean = that of the whole gray image.
void contrast(const Planes& image, float factor, float mean);

/// Keeps one plane, the gray image.
void gray(Planes& image);

/// The smaller of x and 1 - x.
void solarize(const Planes& image);

}  // namespace csml::cpu
