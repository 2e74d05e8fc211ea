#include "data/shifted.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "kernels/check.h"
#include "kernels/random.h"

namespace csml {

Shifted::Shifted(const Dataset& base, int pixels) : base_(base), pixels_(pixels) {
  CHECK(pixels >= 0, "a shift of {} pixels", pixels);
  kind_ = "shifted";
  path_ = base.describe();
  class_names_ = base.class_names();
  channels_ = base.channels();
  for (int64_t i = 0; i < base.size(); ++i) labels_.push_back(base.label(i));
}

uint64_t Shifted::fingerprint() const { return hash_bytes(&pixels_, sizeof pixels_, base_.fingerprint()); }

std::string Shifted::pixels_text() const { return cat("{}, moved by {} pixels", base_.pixels_text(), pixels_); }

ImageView Shifted::view(int64_t i, LoadScratch& scratch, const ChooseRegion&) const {
  const ImageView image = base_.view(i, scratch);
  constexpr std::array<std::array<int, 2>, 4> kDirections{{{-1, 0}, {1, 0}, {0, -1}, {0, 1}}};
  Random random(0, Purpose::test, 0, static_cast<uint64_t>(i));
  const auto [down, right] = kDirections[random.below(4)];
  const int dy = down * pixels_, dx = right * pixels_, c = image.channels;
  // scratch.bytes held the file, which is decoded by now.
  const size_t row = static_cast<size_t>(image.width) * static_cast<size_t>(c);
  scratch.bytes.assign(static_cast<size_t>(image.height) * row, 0);
  const int width = image.width - std::min(pixels_, image.width) * (dx != 0);
  for (int y = std::max(0, dy); y < std::min(image.height, image.height + dy) && width > 0; ++y)
    std::memcpy(scratch.bytes.data() + static_cast<size_t>(y) * row + static_cast<size_t>(std::max(0, dx) * c),
                image.row(y - dy) + std::max(0, -dx) * c, static_cast<size_t>(width * c));
  return {scratch.bytes.data(), image.height, image.width, c, static_cast<ptrdiff_t>(row)};
}

void Shifted::select(const std::vector<int64_t>&) { CHECK(false, "a moved data set is cut before it is moved"); }

}  // namespace csml
