// PNG files and data URIs through stb_image_write: the one file that includes it.
#define STB_IMAGE_WRITE_STATIC
#define STB_IMAGE_WRITE_IMPLEMENTATION
#define STBI_WRITE_NO_STDIO
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
#include <stb/stb_image_write.h>
#pragma GCC diagnostic pop

#include "apps/picture.h"

#include <algorithm>
#include <cmath>

#include "apps/html.h"
#include "kernels/check.h"

namespace csml {
namespace {

std::string base64(const std::string& bytes) {
  constexpr const char* kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  text.reserve((bytes.size() + 2) / 3 * 4);
  for (size_t i = 0; i < bytes.size(); i += 3) {
    uint32_t group = 0;
    for (size_t j = 0; j < 3; ++j)
      group = group << 8 | (i + j < bytes.size() ? static_cast<unsigned char>(bytes[i + j]) : 0u);
    for (size_t j = 0; j < 4; ++j) text += i + j <= bytes.size() ? kDigits[group >> (18 - 6 * j) & 63] : '=';
  }
  return text;
}

}  // namespace

std::string png_bytes(const ImageView& image) {
  std::string bytes;
  const auto append = [](void* context, void* data, int size) {
    static_cast<std::string*>(context)->append(static_cast<const char*>(data), static_cast<size_t>(size));
  };
  const int written = stbi_write_png_to_func(append, &bytes, image.width, image.height, image.channels, image.pixels,
                                             static_cast<int>(image.stride));
  CHECK(written != 0, "a picture of {} x {} x {} could not be encoded", image.width, image.height, image.channels);
  return bytes;
}

std::string png_data_uri(const ImageView& image) { return "data:image/png;base64," + base64(png_bytes(image)); }

std::vector<Image> to_images(const Tensor& views, const AugmentConfig& augment) {
  const Shape& s = views.shape();
  const std::vector<float> values = views.host<float>();
  std::vector<Image> images;
  const auto channels = static_cast<size_t>(s[3]), size = static_cast<size_t>(s.row_size());
  for (int64_t i = 0; i < s[0]; ++i) {
    images.emplace_back(static_cast<int>(s[1]), static_cast<int>(s[2]), static_cast<int>(s[3]));
    for (size_t j = 0; j < size; ++j) {
      const float pixel =
          values[static_cast<size_t>(i) * size + j] * augment.std[j % channels] + augment.mean[j % channels];
      images.back().data()[j] = static_cast<uint8_t>(std::lround(std::clamp(pixel * 255.f, 0.f, 255.f)));
    }
  }
  return images;
}

}  // namespace csml
