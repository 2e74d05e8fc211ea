// The orientation that a camera wrote into a JPEG file, and images turned by it.
#pragma once

#include <cstdint>
#include <span>

#include "data/image.h"

namespace csml {

/// Tag 0x0112 of a JPEG's EXIF (CIPA DC-008): 1 (upright) to 8. 1 also for other files, without EXIF and where it is
/// damaged: it never throws.
int exif_orientation(std::span<const uint8_t> bytes);

/// Turns and mirrors `image` upright into `out`, as Pillow's ImageOps.exif_transpose does. orientation: 1 to 8.
void turn_upright(const ImageView& image, int orientation, Image& out);

}  // namespace csml
