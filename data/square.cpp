#include "data/square.h"

#include <algorithm>
#include <cstring>

#include "data/decode.h"

namespace csml {

void store_pixels(const ImageView& image, int channels, uint8_t* out) {
  for (int y = 0; y < image.height; ++y) {
    const uint8_t* in = image.row(y);
    uint8_t* to = out + static_cast<size_t>(y) * image.width * channels;
    if (image.channels == channels) {
      std::memcpy(to, in, static_cast<size_t>(image.width) * channels);
    } else if (channels == 3) {
      for (int x = 0; x < image.width; ++x) to[3 * x] = to[3 * x + 1] = to[3 * x + 2] = in[x];
    } else {
      for (int x = 0; x < image.width; ++x) to[x] = luma(in[3 * x], in[3 * x + 1], in[3 * x + 2]);
    }
  }
}

ImageView fit_square(const ImageView& image, int size, Image& out, ResizeScratch& scratch) {
  if (image.height == size && image.width == size) return image;
  const int64_t shorter = std::min(image.height, image.width);
  const int height = static_cast<int>(image.height * int64_t{size} / shorter);
  const int width = static_cast<int>(image.width * int64_t{size} / shorter);
  out.reset(size, size, image.channels);
  resize(image, {0, 0, static_cast<float>(image.width), static_cast<float>(image.height)}, height, width,
         {(height - size) / 2, (width - size) / 2, size, size}, Filter::bilinear, out.data(), scratch);
  return out.view();
}

}  // namespace csml
