// What every data set promises, whatever file it was read from.
#pragma once

#include <algorithm>

#include "data/dataset.h"
#include "tests/fuzz/target.h"

namespace csml::fuzz {

/// Labels lie in the range of classes; the first images can be read, or are refused with an Error.
inline void check_dataset(const Dataset& set) {
  require(set.size() > 0, "a data set that opens has images");
  require(!set.describe().empty(), "a data set describes itself");
  for (int64_t i = 0; i < set.size(); ++i)
    require(set.label(i) >= -1 && set.label(i) < set.class_count(), "a label is a class or -1");
  LoadScratch scratch;
  for (int64_t i = 0; i < std::min<int64_t>(set.size(), 4); ++i) {
    const std::string error = error_of([&] {
      const ImageView image = set.view(i, scratch);
      require(image.height > 0 && image.width > 0 && image.stride >= ptrdiff_t{image.width} * image.channels,
              "an image has pixels");
      int sum = 0;  // touches every pixel, for the address sanitizer
      for (int y = 0; y < image.height; ++y)
        for (int x = 0; x < image.width * image.channels; ++x) sum += image.row(y)[x];
      require(sum >= 0, "pixels can be read");
    });
    require(error.empty() || !set.in_memory(), "an image in memory is always there");
  }
}

}  // namespace csml::fuzz
