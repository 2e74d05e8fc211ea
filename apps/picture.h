// Pictures of tensors and their PNG files.
#pragma once

#include <string>
#include <vector>

#include "data/augment.h"
#include "data/image.h"
#include "engine/tensor.h"

namespace csml {

/// A PNG file of u8 pixels with 1 or 3 channels.
std::string png_bytes(const ImageView& image);

/// The images of normalised views [B, S, S, C] as u8 again.
std::vector<Image> to_images(const Tensor& views, const AugmentConfig& augment);

}  // namespace csml
