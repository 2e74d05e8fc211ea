#include "data/memory_dataset.h"

#include <cstring>

#include "data/square.h"
#include "kernels/check.h"

namespace csml {

MemoryDataset::MemoryDataset(Content content)
    : height_(content.height), width_(content.width), pixels_(std::move(content.pixels)) {
  kind_ = std::move(content.kind);
  path_ = std::move(content.path);
  labels_ = std::move(content.labels);
  class_names_ = std::move(content.class_names);
  channels_ = content.channels;
  CHECK(pixels_.size() == labels_.size() * image_bytes(), "{} bytes of pixels for {} images of {} bytes",
        pixels_.size(), labels_.size(), image_bytes());
  record_.resize(labels_.size());
  for (size_t i = 0; i < record_.size(); ++i) record_[i] = static_cast<int64_t>(i);
}

std::string MemoryDataset::name(int64_t i) const { return cat("{}#{}", path_, record_[static_cast<size_t>(i)]); }

std::string MemoryDataset::pixels_text() const { return cat("{} x {} x {} in memory", width_, height_, channels_); }

uint64_t MemoryDataset::fingerprint() const {
  return hash_bytes(labels_.data(), labels_.size() * sizeof(int), hash_bytes(pixels_.data(), pixels_.size(), 0));
}

ImageView MemoryDataset::view(int64_t i, LoadScratch&, const ChooseRegion&) const {
  DCHECK(i >= 0 && i < size(), "image {} of {}", i, size());
  return {pixels_.data() + static_cast<size_t>(i) * image_bytes(), height_, width_, channels_,
          ptrdiff_t{width_} * channels_};
}

void MemoryDataset::select(const std::vector<int64_t>& keep) {
  for (size_t to = 0; to < keep.size(); ++to) {
    const auto from = static_cast<size_t>(keep[to]);
    labels_[to] = labels_[from];
    record_[to] = record_[from];
    std::memmove(pixels_.data() + to * image_bytes(), pixels_.data() + from * image_bytes(), image_bytes());
  }
  labels_.resize(keep.size());
  record_.resize(keep.size());
  pixels_.resize(keep.size() * image_bytes());
  pixels_.shrink_to_fit();
}

void fit_square(MemoryDataset::Content& content, int size) {
  if (content.height == size && content.width == size) return;
  const size_t from = static_cast<size_t>(content.height) * content.width * content.channels;
  const size_t to = static_cast<size_t>(size) * size * content.channels;
  std::vector<uint8_t> pixels(content.labels.size() * to);
  Image fitted;
  ResizeScratch scratch;
  for (size_t i = 0; i < content.labels.size(); ++i) {
    const ImageView image{content.pixels.data() + i * from, content.height, content.width, content.channels,
                          ptrdiff_t{content.width} * content.channels};
    const ImageView square = fit_square(image, size, fitted, scratch);
    std::memcpy(pixels.data() + i * to, square.pixels, to);
  }
  content.pixels = std::move(pixels);
  content.height = content.width = size;
}

}  // namespace csml
