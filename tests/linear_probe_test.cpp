// The linear probe against the same protocol in double, one classifier at a time; its bank of classifiers.
#include <limits>
#include <numeric>

#include "csml/evaluation/classifier_bank.h"
#include "csml/evaluation/probe_linear.h"
#include "engine/params.h"

#include "tests/files.h"
#include "tests/test.h"

// After the project's headers: doctest's CHECK replaces that of kernels/check.h from here on.
#include <doctest/doctest.h>

using namespace csml;

namespace {

/// Clusters that overlap: class c is around a direction of its own, features of very different sizes.
Features clusters(Device& device, int64_t n, int64_t dim, int classes, uint64_t seed) {
  std::vector<float> values;
  Features f;
  for (int64_t i = 0; i < n; ++i) {
    const int label = static_cast<int>(i % classes);
    Random noise(seed, Purpose::test, static_cast<uint64_t>(i)),
        center(77, Purpose::test, static_cast<uint64_t>(label));
    for (int64_t d = 0; d < dim; ++d)
      values.push_back((0.5f * center.uniform(-1, 1) + noise.uniform(-1, 1)) * (d % 3 ? 0.3f : 1.f));
    f.labels.push_back(label);
  }
  f.values = Tensor::from(device, {n, dim}, values);
  return f;
}

struct Reference {
  std::vector<double> weight, bias;
  double top1(const std::vector<double>& x, const std::vector<int>& labels) const {
    const size_t classes = bias.size(), dim = weight.size() / classes;
    int64_t right = 0;
    for (size_t i = 0; i < labels.size(); ++i) {
      const std::vector<double> s = scores(&x[i * dim]);
      right += std::max_element(s.begin(), s.end()) - s.begin() == labels[i];
    }
    return 100.0 * static_cast<double>(right) / static_cast<double>(labels.size());
  }
  std::vector<double> scores(const double* x) const {
    const size_t dim = weight.size() / bias.size();
    std::vector<double> s = bias;
    for (size_t c = 0; c < s.size(); ++c) s[c] += std::inner_product(x, x + dim, &weight[c * dim], 0.0);
    return s;
  }
};

/// Softmax regression by SGD with momentum in double: PyTorch's rule, the probe's order, start and schedule.
Reference train(const std::vector<double>& x, const std::vector<int>& labels, const std::vector<float>& start,
                double rate, const LinearProbeOptions& o) {
  const size_t n = labels.size(), dim = x.size() / n, classes = start.size() / dim;
  const size_t batch = std::min<size_t>(static_cast<size_t>(o.batch_size), n);
  Reference r{{start.begin(), start.end()}, std::vector<double>(classes)};
  std::vector<double> dw(start.size()), db(classes), mw(start.size()), mb(classes);
  std::vector<size_t> order(n);
  std::iota(order.begin(), order.end(), size_t{0});
  for (int epoch = 0; epoch < o.epochs; ++epoch) {
    Random random(o.seed, Purpose::probe, static_cast<uint64_t>(epoch));
    for (size_t i = n - 1; i > 0; --i) std::swap(order[i], order[random.below(static_cast<uint32_t>(i + 1))]);
    double lr = rate;
    for (double milestone : o.milestones)
      if (epoch >= milestone * o.epochs) lr *= 0.1;
    for (size_t first = 0; first + batch <= n; first += batch) {
      std::fill(dw.begin(), dw.end(), 0);
      std::fill(db.begin(), db.end(), 0);
      for (size_t i = first; i < first + batch; ++i) {
        const double* row = &x[order[i] * dim];
        std::vector<double> p = r.scores(row);
        const double largest = *std::max_element(p.begin(), p.end());
        double sum = 0;
        for (double& s : p) sum += s = std::exp(s - largest);
        for (size_t c = 0; c < classes; ++c) {
          const double d = (p[c] / sum - (static_cast<size_t>(labels[order[i]]) == c)) / static_cast<double>(batch);
          db[c] += d;
          for (size_t j = 0; j < dim; ++j) dw[c * dim + j] += d * row[j];
        }
      }
      const auto update = [&](std::vector<double>& w, const std::vector<double>& g, std::vector<double>& m) {
        for (size_t i = 0; i < w.size(); ++i) {
          m[i] = o.momentum * m[i] + g[i] + o.weight_decay * w[i];
          w[i] -= lr * m[i];
        }
      };
      update(r.weight, dw, mw);
      update(r.bias, db, mb);
    }
  }
  return r;
}

/// Largest difference, relative to the largest value of b.
double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  double worst = 0, scale = 1e-30;
  for (size_t i = 0; i < a.size(); ++i) {
    worst = std::max(worst, std::abs(double{a[i]} - double{b[i]}));
    scale = std::max(scale, std::abs(double{b[i]}));
  }
  return worst / scale;
}

std::vector<double> doubles(const Features& f) {
  const std::vector<float> values = f.values.host<float>();
  return {values.begin(), values.end()};
}

}  // namespace

TEST_CASE("each classifier of a bank is what it would be alone") {
  const auto device = Device::open("cpu");
  const int classes = 4;
  const Features data = clusters(*device, 64, 24, classes, 0);
  const std::vector<double> rates{10, 1, 0.05};
  ClassifierBank bank(*device, 24, classes, rates, 0.9f, 1e-3f, 5);
  std::vector<std::unique_ptr<ClassifierBank>> alone;
  for (double rate : rates)
    alone.push_back(std::make_unique<ClassifierBank>(*device, 24, classes, std::vector<double>{rate}, 0.9f, 1e-3f, 5));
  const std::vector<float> start = bank.weight(0).host<float>();
  for (int i = 0; i < 8; ++i) {
    const Tensor x = data.values.rows(16 * (i % 4), 16);
    const std::vector<int> labels(data.labels.begin() + 16 * (i % 4), data.labels.begin() + 16 * (i % 4) + 16);
    for (ClassifierBank* each : {&bank, alone[0].get(), alone[1].get(), alone[2].get()}) {
      each->set_factor(i < 5 ? 1 : 0.1);
      each->step(x, each->targets(labels));
    }
  }
  bank.count(data.values, data.labels);
  for (size_t r = 0; r < rates.size(); ++r) {
    const double worst = largest_difference(bank.weight(r).host<float>(), alone[r]->weight(0).host<float>());
    CHECK(worst < 1e-5);  // products of another width round otherwise; measured 2e-7 and less
    CHECK(largest_difference(bank.weight(r).host<float>(), start) > 1e-3);
    alone[r]->count(data.values, data.labels);
    CHECK(bank.accuracies()[r].top1 == doctest::Approx(alone[r]->accuracies()[0].top1));
    CHECK(bank.accuracies()[r].top5 == 100);  // of four classes
  }
  CHECK(largest_difference(bank.weight(0).host<float>(), bank.weight(2).host<float>()) > 1e-2);
}

TEST_CASE("one step of a bank is the formula's") {
  // One image x = (1, 0), classes 0 and 1, W = 0 but for the start; p = softmax(W x); dW = (p - onehot) x.
  const auto device = Device::open("cpu");
  ClassifierBank bank(*device, 2, 2, {2.0, 0.5}, 0.9f, 0, 3);
  const std::vector<float> w = bank.weight(0).host<float>();
  const double p0 = 1 / (1 + std::exp(double{w[2]} - double{w[0]}));
  bank.set_factor(0.5);
  bank.step(Tensor::from(*device, {1, 2}, std::vector<float>{1, 0}), bank.targets({0}));
  for (size_t r = 0; r < 2; ++r) {
    const std::vector<float> now = bank.weight(r).host<float>();
    const double rate = bank.rates()[r] * 0.5;
    CHECK(now[0] == doctest::Approx(w[0] - rate * (p0 - 1)));
    CHECK(now[2] == doctest::Approx(w[2] - rate * (1 - p0)));
    CHECK(now[1] == w[1]);
  }
}

TEST_CASE("the linear probe is its protocol: each rate alone in double gives the same accuracies and choice") {
  const auto device = Device::open("cpu");
  constexpr int kClasses = 7;
  constexpr int64_t kDim = 19;
  const Features seen = clusters(*device, 350, kDim, kClasses, 1), unseen = clusters(*device, 700, kDim, kClasses, 2);
  LinearProbeOptions o;
  o.learning_rates = {3, 0.03, 0.001};
  o.epochs = 12;
  o.batch_size = 32;  // divides neither the data nor what is left of them
  o.weight_decay = 1e-3f;
  o.holdout = 0.2;
  o.seed = 5;
  const int threads = compute_threads();
  int64_t ticks = 0;
  o.progress = [&](int64_t done, int64_t total) {
    ++ticks;
    CHECK(done == ticks);
    CHECK(total == 24);
  };
  const LinearProbeResult result = linear_probe(seen, unseen, kClasses, o);
  CHECK(ticks == 24);
  CHECK(compute_threads() == threads);

  Params params(*device);
  const int id = params.add("fc.weight", {kClasses, kDim}, Init::normal(0.01f));
  params.build(o.seed, false);
  const std::vector<float> start = params.parameter(id).value().host<float>();
  // The hold-out: 20 % of each class by its key.
  std::vector<int> side(350, 0);
  for (int c = 0; c < kClasses; ++c) {
    std::vector<size_t> rows;
    for (size_t i = static_cast<size_t>(c); i < side.size(); i += kClasses) rows.push_back(i);
    Random random(o.seed, Purpose::split, 0, static_cast<uint64_t>(c));
    for (size_t i = rows.size(); i > 1; --i) std::swap(rows[i - 1], rows[random.below(static_cast<uint32_t>(i))]);
    for (size_t i = 0; i < 10; ++i) side[rows[i]] = 1;
  }
  const std::vector<double> x = doubles(seen), test_x = doubles(unseen);
  std::vector<double> part[2];
  std::vector<int> labels[2];
  for (size_t i = 0; i < side.size(); ++i) {
    part[side[i]].insert(part[side[i]].end(), x.begin() + static_cast<ptrdiff_t>(i * kDim),
                         x.begin() + static_cast<ptrdiff_t>((i + 1) * kDim));
    labels[side[i]].push_back(seen.labels[i]);
  }
  REQUIRE(labels[1].size() == 70);

  // Rounding may move an image that lies on the border of two classes: one of them is allowed.
  REQUIRE(result.holdout_top1.size() == 3);
  double best = -1, best_rate = 0;
  for (size_t r = 0; r < 3; ++r) {
    const double rate = o.learning_rates[r], want = train(part[0], labels[0], start, rate, o).top1(part[1], labels[1]);
    CAPTURE(rate);
    CHECK(result.holdout_top1[r].first == rate);
    CHECK(std::abs(result.holdout_top1[r].second - want) <= 100.0 / 70 + 1e-9);
    if (want > best) best = want, best_rate = rate;
  }
  CHECK(result.holdout_top1[0].second != result.holdout_top1[2].second);  // the rates are told apart
  CHECK(result.learning_rate == best_rate);
  const Reference chosen = train(x, seen.labels, start, best_rate, o);
  CHECK(std::abs(result.top1 - chosen.top1(test_x, unseen.labels)) <= 100.0 / 700 + 1e-9);
  CHECK(result.top1 > 40);
  CHECK(result.top1 < 99);
  CHECK(result.top5 > result.top1);
  CHECK(result.best_top1 >= result.top1);
  MESSAGE(cat("rate {}, top-1 {:.2f} %", result.learning_rate, result.top1));
}

TEST_CASE("the linear probe does not depend on which rates run beside the chosen one") {
  const auto device = Device::open("cpu");
  const Features seen = clusters(*device, 200, 8, 4, 3), unseen = clusters(*device, 200, 8, 4, 4);
  LinearProbeOptions o;
  o.epochs = 5;
  o.batch_size = 64;
  std::vector<std::pair<double, double>> alone;
  for (const double rate : {1.0, 0.1}) {
    o.learning_rates = {rate, rate};
    const LinearProbeResult result = linear_probe(seen, unseen, 4, o);
    CHECK(result.holdout_top1[0] == result.holdout_top1[1]);
    alone.push_back(result.holdout_top1[0]);
  }
  o.learning_rates = {1.0, 0.1, 100};
  const LinearProbeResult all = linear_probe(seen, unseen, 4, o);
  for (size_t r = 0; r < 2; ++r) CHECK(std::abs(all.holdout_top1[r].second - alone[r].second) <= 5 + 1e-9);  // 1 of 20
}

TEST_CASE("the linear probe holds no second copy of the features") {
  const auto device = Device::open("cpu");
  constexpr int64_t kRows = 20000, kDim = 64;
  const Features seen = clusters(*device, kRows, kDim, 4, 5), unseen = clusters(*device, 5000, kDim, 4, 6);
  LinearProbeOptions o;
  o.epochs = 1;
  o.standardise = true;
  const size_t before = device->stats().reserved;
  linear_probe(seen, unseen, 4, o);
  const size_t features = seen.values.bytes() + unseen.values.bytes(), grown = device->stats().reserved - before;
  MESSAGE(cat("{} bytes beside {} of features", grown, features));
  CHECK(grown < features / 3);
}

TEST_CASE("what is not finite is an error or wrong, never right") {
  const auto device = Device::open("cpu");
  Features seen = clusters(*device, 200, 8, 4, 3);
  const Features unseen = clusters(*device, 100, 8, 4, 4);
  std::vector<float> values = seen.values.host<float>();
  values[17] = std::numeric_limits<float>::quiet_NaN();
  seen.values.upload(values);
  CHECK(contains(error_of([&] { linear_probe(seen, unseen, 4, {}); }), "the features hold NaN or infinity"));
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float scores[] = {1, nan, 2, 2};
  CHECK(classes_ahead(scores, 4, 1) == 3);
  CHECK(classes_ahead(scores, 4, 0) == 3);
  CHECK(classes_ahead(scores + 2, 2, 0) == 0);  // of equal scores the lower class is ahead
  CHECK(classes_ahead(scores + 2, 2, 1) == 1);
}
