// The pictures of a report: augmented views of a few samples, and nearest neighbours by the trained encoder.
#pragma once

#include <string>

#include "csml/config/config.h"
#include "engine/checkpoint.h"
#include "engine/device.h"

namespace csml {

struct PictureOptions {
  std::string data;   // SPEC of the images
  int samples = 6;    // rows of either section
  int images = 2000;  // of the data set, class-balanced, among which neighbours are searched
  int neighbors = 7;  // per row
  std::string encoder = "q";
};

/// Original, then the views as the loader and the augmentation draw them in the last epoch of the checkpoint. HTML.
std::string views_html(Device& device, const Config& config, const Checkpoint& checkpoint,
                       const PictureOptions& options);

/// A few images, each with its nearest neighbours by the checkpoint's encoder, with labels where there are any. HTML.
std::string neighbors_html(Device& device, const Checkpoint& checkpoint, const PictureOptions& options);

}  // namespace csml
