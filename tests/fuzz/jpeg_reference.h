// libjpeg as the judge of the region decoder (data/baseline_jpeg.h).
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace csml::fuzz {

/// RGB pixels of a JPEG as libjpeg decodes it with its default settings; nothing when it fails, warns, or the file is
/// neither gray nor YCbCr or RGB.
std::optional<std::vector<uint8_t>> jpeg_reference(std::span<const uint8_t> bytes);

/// Aborts unless decode_image agrees with the reference: where it accepts a JPEG without a warning, libjpeg does, and
/// the pixels of the whole image and of some regions are equal. False: not accepted.
bool check_against_reference(std::span<const uint8_t> bytes);

}  // namespace csml::fuzz
