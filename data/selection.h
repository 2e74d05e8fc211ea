// Which images of a data set to keep: limits and held-out shares, balanced over the classes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace csml {

/// The first image of every class, then the second of every class, … until there are `limit`; ascending. A label of -1 is
/// a class of its own.
std::vector<int64_t> limited(const std::vector<int>& labels, int classes, int64_t limit);

/// `share` of every class, chosen by a fixed seed (part_holdout), or all but those; ascending.
std::vector<int64_t> held_out(const std::vector<int>& labels, int classes, double share, bool part_holdout);

}  // namespace csml
