#include "csml/probe_knn.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace csml {

std::vector<KnnResult> knn_classify(const Features& train, const Features& test, int class_count,
                                    const std::vector<int>& ks, double temperature, Comm& comm) {
  CHECK(class_count > 0, "k-NN needs labels; this data set has none");
  CHECK(!ks.empty() && temperature > 0, "k-NN needs at least one k and a temperature above 0");
  const int64_t n_train = train.values.shape()[0], n_test = test.values.shape()[0];
  const int most = static_cast<int>(std::min<int64_t>(n_train, *std::max_element(ks.begin(), ks.end())));
  CHECK(most > 0, "k-NN: k must be positive");
  for (int label : train.labels) CHECK(label >= 0 && label < class_count, "k-NN: a training image has label {}", label);

  std::vector<std::vector<int64_t>> hits(ks.size(), {0, 0});
  constexpr int64_t kBlock = 1024;  // test rows searched at a time: bounds memory
  std::vector<double> score(static_cast<size_t>(class_count));
  std::vector<int> order(static_cast<size_t>(class_count));
  const Share share = share_of(comm, n_test);
  for (int64_t first = share.first; first < share.last; first += kBlock) {
    const int64_t count = std::min(kBlock, share.last - first);
    const TopKResult found = top_k(test.values.rows(first, count), train.values, most);
    const std::vector<float> similarity = found.scores.host<float>();
    const std::vector<int32_t> index = found.index.host<int32_t>();
    for (int32_t i : index) CHECK(i >= 0, "the features hold NaN or infinity: the encoder has diverged");
    for (int64_t i = 0; i < count; ++i) {
      const int truth = test.labels[static_cast<size_t>(first + i)];
      for (size_t which = 0; which < ks.size(); ++which) {
        std::fill(score.begin(), score.end(), 0.0);
        const int k = std::min(ks[which], most);
        for (int j = 0; j < k; ++j) {
          const size_t at = static_cast<size_t>(i * most + j);
          score[static_cast<size_t>(train.labels[static_cast<size_t>(index[at])])] +=
              std::exp(similarity[at] / temperature);
        }
        std::iota(order.begin(), order.end(), 0);
        const size_t five = std::min<size_t>(5, order.size());
        std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(five), order.end(),
                          [&](int a, int b) {
                            const double sa = score[static_cast<size_t>(a)], sb = score[static_cast<size_t>(b)];
                            return sa > sb || (sa == sb && a < b);
                          });
        hits[which][0] += order[0] == truth;
        hits[which][1] += std::find(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(five), truth) !=
                          order.begin() + static_cast<std::ptrdiff_t>(five);
      }
    }
  }
  std::vector<int32_t> counts;
  for (const std::vector<int64_t>& of_k : hits)
    for (int64_t count : of_k) counts.push_back(static_cast<int32_t>(count));
  const Tensor total = Tensor::from(test.values.device(), {static_cast<int64_t>(counts.size())}, counts);
  comm.all_reduce_sum(total);
  counts = total.host<int32_t>();
  for (size_t i = 0; i < counts.size(); ++i) hits[i / 2][i % 2] = counts[i];
  std::vector<KnnResult> results;
  for (size_t which = 0; which < ks.size(); ++which)
    results.push_back({std::min(ks[which], most), temperature,
                       100.0 * static_cast<double>(hits[which][0]) / static_cast<double>(n_test),
                       100.0 * static_cast<double>(hits[which][1]) / static_cast<double>(n_test)});
  return results;
}

}  // namespace csml
