// Image and ImageView: u8 pixels in host memory, rows of interleaved channels (H, W, C).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace csml {

/// Read-only pixels, channel fastest. stride = bytes from one row to the next (>= width * channels).
struct ImageView {
  const uint8_t* pixels = nullptr;
  int height = 0, width = 0, channels = 0;
  ptrdiff_t stride = 0;

  const uint8_t* row(int y) const { return pixels + y * stride; }
  /// The rectangle of h rows and w columns whose first pixel is (y, x); shares the pixels.
  ImageView crop(int y, int x, int h, int w) const {
    return {row(y) + ptrdiff_t{x} * channels, h, w, channels, stride};
  }
};

/// Owns its pixels, rows without gaps. reset() keeps the memory where it suffices and leaves the pixels undefined.
class Image {
 public:
  Image() = default;
  Image(int height, int width, int channels) { reset(height, width, channels); }

  void reset(int height, int width, int channels) {
    height_ = height, width_ = width, channels_ = channels;
    if (size() > capacity_) {
      pixels_ = std::make_unique_for_overwrite<uint8_t[]>(size());
      capacity_ = size();
    }
  }
  int height() const { return height_; }
  int width() const { return width_; }
  int channels() const { return channels_; }
  size_t size() const { return static_cast<size_t>(height_) * width_ * channels_; }
  uint8_t* data() { return pixels_.get(); }
  const uint8_t* data() const { return pixels_.get(); }
  uint8_t* row(int y) { return pixels_.get() + static_cast<size_t>(y) * width_ * channels_; }
  ImageView view() const { return {pixels_.get(), height_, width_, channels_, ptrdiff_t{width_} * channels_}; }

 private:
  std::unique_ptr<uint8_t[]> pixels_;
  size_t capacity_ = 0;
  int height_ = 0, width_ = 0, channels_ = 0;
};

}  // namespace csml
