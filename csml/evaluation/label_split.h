// Which images of a data set keep their labels: class-balanced draws by seed, list files, hold-outs.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "data/dataset.h"

namespace csml {

/// floor(share * N) images (at least one per class), as many of every class as of the next up to one, whatever the
/// classes' sizes, as in SimCLR's 1 % and 10 % lists of ImageNet (12 or 13, 128 or 129 per class). A class with fewer
/// images gives all it has. Drawn by `seed` and the class alone; a smaller share is a subset of a larger one.
/// Ascending.
std::vector<int64_t> balanced_labels(const std::vector<int>& labels, int class_count, double share, uint64_t seed);

/// The images that a list file names, one a line: a file's name (n04235860_14959.JPEG, as in SimCLR's lists), a path
/// that ends an image's path, or an image's number in the data set. Ascending, each once. Lines that name no image of
/// this data set are counted in *unmatched. Throws Error where none matches or a name fits two images.
std::vector<int64_t> listed_labels(const Dataset& dataset, const std::filesystem::path& file, int64_t* unmatched);

/// A share of each class held out, by seed; of a class with at least two images at least one is held out and one
/// stays. Positions in `labels`, ascending.
struct HoldOut {
  std::vector<int32_t> rest, held;
};
HoldOut hold_out(const std::vector<int>& labels, int class_count, double share, uint64_t seed);

/// `count` images of every class, drawn by (seed, run): low-shot training. Throws Error for a class that has fewer.
std::vector<int32_t> low_shot(const std::vector<int>& labels, int class_count, int count, uint64_t seed, int run);

}  // namespace csml
