#include "data/selection.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "kernels/random.h"

namespace csml {
namespace {

/// Images of every class (unlabelled ones form one), classes ascending, in file order inside a class.
std::vector<std::vector<int64_t>> by_class(const std::vector<int>& labels, int classes) {
  std::vector<std::vector<int64_t>> lists(static_cast<size_t>(classes) + 1);
  for (size_t i = 0; i < labels.size(); ++i)
    lists[static_cast<size_t>(labels[i] < 0 ? classes : labels[i])].push_back(static_cast<int64_t>(i));
  return lists;
}

}  // namespace

std::vector<int64_t> limited(const std::vector<int>& labels, int classes, int64_t limit) {
  const auto lists = by_class(labels, classes);
  std::vector<int64_t> keep;
  for (size_t round = 0; static_cast<int64_t>(keep.size()) < limit; ++round) {
    const size_t before = keep.size();
    for (const auto& list : lists)
      if (round < list.size() && static_cast<int64_t>(keep.size()) < limit) keep.push_back(list[round]);
    if (keep.size() == before) break;
  }
  std::sort(keep.begin(), keep.end());
  return keep;
}

std::vector<int64_t> held_out(const std::vector<int>& labels, int classes, double share, bool part_holdout) {
  std::vector<int64_t> keep;
  auto lists = by_class(labels, classes);
  for (size_t c = 0; c < lists.size(); ++c) {
    auto& list = lists[c];
    Random random(0, Purpose::split, 0, c);
    for (size_t i = list.size(); i > 1; --i) std::swap(list[i - 1], list[random.below(static_cast<uint32_t>(i))]);
    const auto cut = static_cast<ptrdiff_t>(std::llround(share * static_cast<double>(list.size())));
    keep.insert(keep.end(), part_holdout ? list.begin() : list.begin() + cut,
                part_holdout ? list.begin() + cut : list.end());
  }
  std::sort(keep.begin(), keep.end());
  return keep;
}

}  // namespace csml
