#include "csml/evaluation/probe_knn.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace csml {

namespace {

/// Room that one query's votes are counted in.
struct Ballot {
  explicit Ballot(int class_count) : score(static_cast<size_t>(class_count)), order(static_cast<size_t>(class_count)) {}
  std::vector<double> score;
  std::vector<int> order;
};

/// Adds to (top-1, top-5) hits whether the k neighbours, by descending similarity, elect `truth`.
void vote(const float* similarity, const int* labels, int k, double temperature, int truth, Ballot& ballot,
          std::vector<int64_t>& hits) {
  std::vector<double>& score = ballot.score;
  std::vector<int>& order = ballot.order;
  std::fill(score.begin(), score.end(), 0.0);
  for (int j = 0; j < k; ++j) score[static_cast<size_t>(labels[j])] += std::exp(similarity[j] / temperature);
  std::iota(order.begin(), order.end(), 0);
  const auto five = order.begin() + static_cast<std::ptrdiff_t>(std::min<size_t>(5, order.size()));
  std::partial_sort(order.begin(), five, order.end(), [&](int a, int b) {
    const double sa = score[static_cast<size_t>(a)], sb = score[static_cast<size_t>(b)];
    return sa > sb || (sa == sb && a < b);
  });
  hits[0] += order[0] == truth;
  hits[1] += std::find(order.begin(), five, truth) != five;
}

}  // namespace

std::vector<KnnResult> knn_classify(const Features& train, const Features& test, int class_count,
                                    const std::vector<int>& ks, double temperature, Comm& comm) {
  CHECK(class_count > 0, "k-NN needs labels; this data set has none");
  CHECK(!ks.empty() && temperature > 0, "k-NN needs at least one k and a temperature above 0");
  const int64_t n_train = train.values.shape()[0], n_test = test.values.shape()[0];
  const int most = static_cast<int>(std::min<int64_t>(n_train, *std::max_element(ks.begin(), ks.end())));
  CHECK(most > 0, "k-NN: k must be positive");
  for (int label : train.labels) CHECK(label >= 0 && label < class_count, "k-NN: a training image has label {}", label);

  std::vector<std::vector<int64_t>> hits(ks.size(), {0, 0});
  constexpr int64_t kBlock = 8192;  // test rows searched at a time: bounds the k best that are held
  Ballot ballot(class_count);
  std::vector<int> voters(static_cast<size_t>(most));
  const Share share = share_of(comm, n_test);
  for (int64_t first = share.first; first < share.last; first += kBlock) {
    const int64_t count = std::min(kBlock, share.last - first);
    const TopKResult found = top_k(test.values.rows(first, count), train.values, most);
    const std::vector<float> similarity = found.scores.host<float>();
    const std::vector<int32_t> index = found.index.host<int32_t>();
    for (int32_t i : index) CHECK(i >= 0, "the features hold NaN or infinity: the encoder has diverged");
    for (int64_t i = 0; i < count; ++i) {
      const int truth = test.labels[static_cast<size_t>(first + i)];
      for (int j = 0; j < most; ++j)
        voters[static_cast<size_t>(j)] = train.labels[static_cast<size_t>(index[static_cast<size_t>(i * most + j)])];
      for (size_t which = 0; which < ks.size(); ++which)
        vote(similarity.data() + i * most, voters.data(), std::min(ks[which], most), temperature, truth, ballot,
             hits[which]);
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

KnnStream::KnnStream(Features queries, int k) : queries_(std::move(queries)), k_(k) {
  CHECK(k > 0, "k-NN: k must be positive");
}

void KnnStream::add(const Features& block) {
  const int64_t n = block.values.shape()[0], m = queries_.values.shape()[0];
  const int fresh = static_cast<int>(std::min<int64_t>(n, k_)), old = found_;
  const int both = static_cast<int>(std::min<int64_t>(k_, int64_t{old} + fresh));
  const TopKResult found = top_k(queries_.values, block.values, fresh);
  const std::vector<float> similarity = found.scores.host<float>();
  const std::vector<int32_t> index = found.index.host<int32_t>();
  for (int32_t i : index) CHECK(i >= 0, "the features hold NaN or infinity: the encoder has diverged");
  std::vector<float> merged(static_cast<size_t>(m * both));
  std::vector<int> labels(merged.size());
  for (int64_t i = 0; i < m; ++i) {
    int a = 0, b = 0;
    for (int j = 0; j < both; ++j) {
      const size_t of_old = static_cast<size_t>(i * old + a), of_new = static_cast<size_t>(i * fresh + b);
      const bool take_old = b == fresh || (a < old && similarity_[of_old] >= similarity[of_new]);
      const size_t to = static_cast<size_t>(i * both + j);
      merged[to] = take_old ? similarity_[of_old] : similarity[of_new];
      labels[to] = take_old ? label_[of_old] : block.labels[static_cast<size_t>(index[of_new])];
      take_old ? ++a : ++b;
    }
  }
  similarity_ = std::move(merged);
  label_ = std::move(labels);
  found_ = both;
  rows_ += n;
}

std::vector<KnnResult> KnnStream::classify(int class_count, const std::vector<int>& ks, double temperature) const {
  CHECK(class_count > 0, "k-NN needs labels; this data set has none");
  CHECK(!ks.empty() && temperature > 0 && found_ > 0, "k-NN needs training rows, a k and a temperature above 0");
  for (int label : label_) CHECK(label >= 0 && label < class_count, "k-NN: a training image has label {}", label);
  const int64_t m = queries_.values.shape()[0];
  Ballot ballot(class_count);
  std::vector<KnnResult> results;
  for (int k : ks) {
    CHECK(k > 0 && k <= k_, "k-NN: k = {} where the search kept {}", k, k_);
    std::vector<int64_t> hits(2);
    for (int64_t i = 0; i < m; ++i)
      vote(similarity_.data() + i * found_, label_.data() + i * found_, std::min(k, found_), temperature,
           queries_.labels[static_cast<size_t>(i)], ballot, hits);
    results.push_back({std::min(k, found_), temperature, 100.0 * static_cast<double>(hits[0]) / static_cast<double>(m),
                       100.0 * static_cast<double>(hits[1]) / static_cast<double>(m)});
  }
  return results;
}

}  // namespace csml
