// The permutation of shuffled batch norm (He et al. 2020): which image's key is computed at which place of the batch.
#pragma once

#include <cstdint>
#include <vector>

namespace csml {

/// p: place i of the key batch holds the image at place p[i] of the batch. One draw per step and key view (`number`),
/// over the global batch of n images, each contiguous span of `span` images permuted in itself (Fisher-Yates); span
/// divides n. Independent of how many processes share the batch.
std::vector<int32_t> shuffle_permutation(uint64_t seed, int64_t step, uint32_t number, int64_t n, int64_t span);

}  // namespace csml
