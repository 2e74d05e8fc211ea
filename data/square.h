// Pixels stored with another number of channels, and images made square.
#pragma once

#include <cstddef>
#include <cstdint>

#include "data/image.h"
#include "data/resize.h"

namespace csml {

/// Stores one image (1 or 3 channels) at `out` with `channels` channels.
void store_pixels(const ImageView& image, int channels, uint8_t* out);
/// Resizes the short side to size and takes the central crop; returns the argument when it has that size already.
ImageView fit_square(const ImageView& image, int size, Image& out, ResizeScratch& scratch);

}  // namespace csml
