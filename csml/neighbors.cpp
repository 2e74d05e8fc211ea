#include "csml/neighbors.h"

#include <algorithm>
#include <numeric>

namespace csml {

NeighborTable nearest_neighbors(const Tensor& features, int k, std::vector<float>* similarity) {
  const int64_t n = features.shape()[0];
  CHECK(k >= 1 && n > k, "{} neighbours of {} images: there must be more images than neighbours", k, n);
  NeighborTable table{.index = {}, .k = k};
  table.index.reserve(static_cast<size_t>(n * k));
  constexpr int64_t kBlock = 4096;  // queries at a time
  for (int64_t first = 0; first < n; first += kBlock) {
    const int64_t count = std::min(kBlock, n - first);
    std::vector<int32_t> self(static_cast<size_t>(count));
    std::iota(self.begin(), self.end(), static_cast<int32_t>(first));
    const TopKResult found =
        top_k(features.rows(first, count), features, k, Tensor::from(features.device(), {count}, self));
    const std::vector<int32_t> index = found.index.host<int32_t>();
    for (int32_t i : index) CHECK(i >= 0, "the features hold NaN or infinity: the encoder has diverged");
    table.index.insert(table.index.end(), index.begin(), index.end());
    if (similarity) {
      const std::vector<float> scores = found.scores.host<float>();
      similarity->insert(similarity->end(), scores.begin(), scores.end());
    }
  }
  return table;
}

double neighbor_purity(const NeighborTable& table, const std::vector<int>& labels) {
  int64_t same = 0, known = 0;
  const size_t k = static_cast<size_t>(table.k);
  for (size_t i = 0; i < labels.size() && k > 0; ++i)
    for (size_t j = 0; j < k; ++j) {
      const int other = labels[static_cast<size_t>(table.index[i * k + j])];
      if (labels[i] < 0 || other < 0) continue;
      ++known;
      same += labels[i] == other;
    }
  return known ? static_cast<double>(same) / static_cast<double>(known) : -1;
}

double neighbor_churn(const NeighborTable& before, const NeighborTable& now) {
  if (before.k != now.k || before.index.size() != now.index.size() || now.index.empty()) return 1;
  int64_t changed = 0;
  const auto k = static_cast<std::ptrdiff_t>(now.k);
  for (auto b = before.index.begin(), row = now.index.begin(); row != now.index.end(); b += k, row += k)
    for (auto it = row; it != row + k; ++it) changed += std::find(b, b + k, *it) == b + k;
  return static_cast<double>(changed) / static_cast<double>(now.index.size());
}

}  // namespace csml
