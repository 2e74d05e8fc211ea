#include "data/shuffle.h"

#include <numeric>
#include <utility>

#include "kernels/check.h"
#include "kernels/random.h"

namespace csml {

std::vector<int32_t> shuffle_permutation(uint64_t seed, int64_t step, uint32_t number, int64_t n, int64_t span) {
  CHECK(span > 0 && n % span == 0, "a batch of {} images in shuffle spans of {}", n, span);
  std::vector<int32_t> permutation(static_cast<size_t>(n));
  std::iota(permutation.begin(), permutation.end(), 0);
  for (int64_t first = 0; first < n; first += span) {
    Random random(seed, Purpose::shuffle, static_cast<uint64_t>(step), static_cast<uint64_t>(first / span), number);
    int32_t* p = permutation.data() + first;
    for (int64_t i = span - 1; i > 0; --i) std::swap(p[i], p[random.below(static_cast<uint32_t>(i + 1))]);
  }
  return permutation;
}

}  // namespace csml
