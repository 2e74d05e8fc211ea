#include "csml/training/neighbors.h"

#include <algorithm>
#include <numeric>

namespace csml {

namespace {

/// The first n of the ranks' `each` values, in rank order.
template <class T>
std::vector<T> gathered(Comm& comm, Device& device, std::vector<T> mine, int64_t each, int64_t n) {
  mine.resize(static_cast<size_t>(each));
  const Tensor all(device, {each * comm.size()}, dtype_of<T>::value);
  comm.all_gather(Tensor::from(device, {each}, mine), all);
  std::vector<T> values = all.template host<T>();
  values.resize(static_cast<size_t>(n));
  return values;
}

}  // namespace

NeighborTable nearest_neighbors(const Tensor& features, int k, std::vector<float>* similarity, Comm& comm) {
  const int64_t n = features.shape()[0];
  CHECK(k >= 1 && n > k, "{} neighbours of {} images: there must be more images than neighbours", k, n);
  const Share share = share_of(comm, n);
  std::vector<int32_t> found_index;
  std::vector<float> found_scores;
  constexpr int64_t kBlock = 4096;  // queries at a time
  for (int64_t first = share.first; first < share.last; first += kBlock) {
    const int64_t count = std::min(kBlock, share.last - first);
    std::vector<int32_t> self(static_cast<size_t>(count));
    std::iota(self.begin(), self.end(), static_cast<int32_t>(first));
    const TopKResult found =
        top_k(features.rows(first, count), features, k, Tensor::from(features.device(), {count}, self));
    const std::vector<int32_t> index = found.index.host<int32_t>();
    for (int32_t i : index) CHECK(i >= 0, "the features hold NaN or infinity: the encoder has diverged");
    found_index.insert(found_index.end(), index.begin(), index.end());
    if (similarity) {
      const std::vector<float> scores = found.scores.host<float>();
      found_scores.insert(found_scores.end(), scores.begin(), scores.end());
    }
  }
  Device& device = features.device();
  if (similarity) *similarity = gathered(comm, device, std::move(found_scores), share.each * k, n * k);
  return {.index = gathered(comm, device, std::move(found_index), share.each * k, n * k), .k = k};
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
