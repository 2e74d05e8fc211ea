#include "csml/probe_linear.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "engine/ops.h"
#include "engine/params.h"
#include "engine/step.h"
#include "kernels/random.h"

namespace csml {

namespace {

Tensor select_rows(const Tensor& x, const std::vector<int32_t>& rows) {
  return gather(x, Tensor::from(x.device(), {static_cast<int64_t>(rows.size())}, rows));
}

std::vector<int> select(const std::vector<int>& labels, const std::vector<int32_t>& rows) {
  std::vector<int> out;
  out.reserve(rows.size());
  for (int32_t r : rows) out.push_back(labels[static_cast<size_t>(r)]);
  return out;
}

/// One classifier W_r [C,D], b_r [C] per learning rate r, stacked: W [R*C,D], b [R*C]. W_r starts normal with std 0.01,
/// the same for every r, b_r zero (MoCo's linear protocol).
struct Classifiers {
  std::vector<double> rates;
  int64_t classes;
  Tensor weight, bias, weight_momentum, bias_momentum;

  Classifiers(Device& device, int64_t dim, int64_t class_count, std::vector<double> learning_rates, uint64_t seed)
      : rates(std::move(learning_rates)),
        classes(class_count),
        weight(device, {count() * classes, dim}),
        bias(Tensor::full(device, {count() * classes}, 0)),
        weight_momentum(Tensor::full(device, weight.shape(), 0)),
        bias_momentum(Tensor::full(device, bias.shape(), 0)) {
    Params start(device);
    const int id = start.add("fc.weight", {classes, dim}, Init::normal(0.01f));
    start.build(seed, false);
    for (int64_t r = 0; r < count(); ++r) copy(start.parameter(id).value(), of(weight, r));
  }
  int64_t count() const { return static_cast<int64_t>(rates.size()); }
  /// The part of classifier r.
  Tensor of(const Tensor& stacked, int64_t r) const { return stacked.rows(r * classes, classes); }
};

/// A product this small is over sooner than threads have met.
struct FewThreads {
  explicit FewThreads(int64_t operations) : before(compute_threads()) {
    if (operations < int64_t{1} << 30) set_compute_threads(1);
  }
  ~FewThreads() { set_compute_threads(before); }
  FewThreads(const FewThreads&) = delete;
  FewThreads& operator=(const FewThreads&) = delete;
  int before;
};

struct Accuracy {
  double top1 = 0, top5 = 0;
};

Accuracy evaluate(const Classifiers& all, int64_t r, const Tensor& x, const std::vector<int>& labels) {
  const NoGrad no_grad;
  const int classes = static_cast<int>(all.classes);
  const Var scores = linear(Var(x), Var(all.of(all.weight, r)), Var(all.of(all.bias, r)));
  const std::vector<float> logits = scores.value().host<float>();
  int64_t first = 0, five = 0;
  for (size_t i = 0; i < labels.size(); ++i) {
    const float* row = logits.data() + i * static_cast<size_t>(classes);
    const float own = row[labels[i]];
    int better = 0;  // classes ahead of the truth; an equal score of a lower class counts as ahead
    for (int c = 0; c < classes; ++c) better += row[c] > own || (row[c] == own && c < labels[i]);
    first += better == 0;
    five += better < 5;
  }
  const double n = static_cast<double>(std::max<size_t>(1, labels.size()));
  return {100.0 * static_cast<double>(first) / n, 100.0 * static_cast<double>(five) / n};
}

/// Trains all classifiers on the same batches, one product for all; calls after_epoch(epoch) when given.
void train(Classifiers& all, const Tensor& x, const std::vector<int>& labels, const LinearProbeOptions& o,
           const std::function<void(int epoch)>& after_epoch) {
  Device& device = x.device();
  const int64_t n = x.shape()[0], batch = std::min<int64_t>(o.batch_size, n), count = all.count();
  std::vector<int32_t> repeated;  // row i: the label of x[i], once per classifier
  for (int label : labels) repeated.insert(repeated.end(), static_cast<size_t>(count), label);
  const Tensor label_rows = Tensor::from(device, {n, count}, repeated);
  const Tensor rows(device, {batch}, DType::i32), rates(device, {count});
  // The mean is over all classifiers' rows: the seed makes it each classifier's own.
  const Tensor seed = Tensor::full(device, {1}, static_cast<float>(count));
  const Var weight = Var::leaf(all.weight, like(all.weight)), bias = Var::leaf(all.bias, like(all.bias));
  Step step(device, [&] {
    weight.mark_unwritten();
    bias.mark_unwritten();
    const Var logits = reshape(linear(Var(gather(x, rows)), weight, bias), {batch * count, all.classes});
    cross_entropy(logits, gather(label_rows, rows).reshape({batch * count})).backward(seed);
    for (int64_t r = 0; r < count; ++r) {
      const Tensor rate = rates.rows(r, 1);
      sgd(all.of(weight.grad(), r), all.of(all.weight, r), all.of(all.weight_momentum, r), rate, o.momentum,
          o.weight_decay);
      sgd(all.of(bias.grad(), r), all.of(all.bias, r), all.of(all.bias_momentum, r), rate, o.momentum, o.weight_decay);
    }
  });
  const FewThreads few(6 * batch * all.weight.size());
  std::vector<int32_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  for (int epoch = 0; epoch < o.epochs; ++epoch) {
    Random random(o.seed, Purpose::probe, static_cast<uint64_t>(epoch));
    for (int64_t i = n - 1; i > 0; --i)
      std::swap(order[static_cast<size_t>(i)], order[random.below(static_cast<uint32_t>(i + 1))]);
    double factor = 1;
    for (double milestone : o.milestones)
      if (epoch >= milestone * o.epochs) factor *= 0.1;
    std::vector<float> now;
    for (double rate : all.rates) now.push_back(static_cast<float>(rate * factor));
    rates.upload(now);
    for (int64_t first = 0; first + batch <= n; first += batch) {
      rows.upload(std::span<const int32_t>(order).subspan(static_cast<size_t>(first), static_cast<size_t>(batch)));
      step.run();
    }
    if (after_epoch) after_epoch(epoch);
  }
}

/// Rows held out per class, drawn by a key of their own so that the split is the same for every encoder.
void split(const std::vector<int>& labels, int classes, double share, uint64_t seed, std::vector<int32_t>* rest,
           std::vector<int32_t>* held) {
  for (int c = 0; c < classes; ++c) {
    std::vector<int32_t> rows;
    for (size_t i = 0; i < labels.size(); ++i)
      if (labels[i] == c) rows.push_back(static_cast<int32_t>(i));
    Random random(seed, Purpose::split, 0, static_cast<uint64_t>(c));
    for (size_t i = rows.size(); i > 1; --i) std::swap(rows[i - 1], rows[random.below(static_cast<uint32_t>(i))]);
    const size_t count = static_cast<size_t>(std::lround(share * static_cast<double>(rows.size())));
    held->insert(held->end(), rows.begin(), rows.begin() + static_cast<std::ptrdiff_t>(count));
    rest->insert(rest->end(), rows.begin() + static_cast<std::ptrdiff_t>(count), rows.end());
  }
  std::sort(rest->begin(), rest->end());
  std::sort(held->begin(), held->end());
}

/// (x - mean) / std per dimension, statistics of `reference`.
Tensor standardised(const Tensor& x, const Tensor& reference) {
  const int64_t d = x.shape()[1], n = reference.shape()[0];
  const std::vector<float> values = reference.host<float>();
  std::vector<double> sum(static_cast<size_t>(d)), squares(static_cast<size_t>(d));
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < d; ++j) {
      const double v = values[static_cast<size_t>(i * d + j)];
      sum[static_cast<size_t>(j)] += v;
      squares[static_cast<size_t>(j)] += v * v;
    }
  std::vector<float> mean(static_cast<size_t>(d)), var(static_cast<size_t>(d));
  for (size_t j = 0; j < mean.size(); ++j) {
    const double m = sum[j] / static_cast<double>(n);
    mean[j] = static_cast<float>(m);
    var[j] = static_cast<float>(std::max(0.0, squares[j] / static_cast<double>(n) - m * m));
  }
  Device& device = x.device();
  return batch_norm_inference(Var(x), Var(Tensor::full(device, {d}, 1.f)), Var(Tensor::full(device, {d}, 0.f)),
                              Tensor::from(device, {d}, mean), Tensor::from(device, {d}, var), {}, false)
      .value();
}

}  // namespace

LinearProbeResult linear_probe(const Features& train_set, const Features& test_set, int classes,
                               const LinearProbeOptions& o) {
  CHECK(classes > 1, "a linear probe needs at least two classes");
  CHECK(!o.learning_rates.empty() && o.epochs > 0, "a linear probe needs a learning rate and an epoch");
  Device& device = train_set.values.device();
  const Tensor train_x = o.standardise ? standardised(train_set.values, train_set.values) : train_set.values;
  const Tensor test_x = o.standardise ? standardised(test_set.values, train_set.values) : test_set.values;
  const int64_t dim = train_x.shape()[1];
  const int64_t passes = 2 * int64_t{o.epochs};
  int64_t done = 0;
  auto tick = [&] {
    if (o.progress) o.progress(++done, passes);
  };
  LinearProbeResult result;
  result.learning_rate = o.learning_rates[0];

  if (o.learning_rates.size() > 1) {  // choose on held-out training images
    std::vector<int32_t> rest, held;
    split(train_set.labels, classes, o.holdout, o.seed, &rest, &held);
    CHECK(!rest.empty() && !held.empty(), "too few labelled images ({}) to hold some out for the learning rate",
          train_set.labels.size());
    Classifiers candidates(device, dim, classes, o.learning_rates, o.seed);
    train(candidates, select_rows(train_x, rest), select(train_set.labels, rest), o, [&](int) { tick(); });
    const Tensor held_x = select_rows(train_x, held);
    const std::vector<int> held_labels = select(train_set.labels, held);
    double best = -1;
    for (int64_t r = 0; r < candidates.count(); ++r) {
      const double rate = candidates.rates[static_cast<size_t>(r)];
      const double top1 = evaluate(candidates, r, held_x, held_labels).top1;
      result.holdout_top1.emplace_back(rate, top1);
      if (top1 > best) {
        best = top1;
        result.learning_rate = rate;
      }
    }
  }
  Classifiers chosen(device, dim, classes, {result.learning_rate}, o.seed);
  Accuracy last;
  train(chosen, train_x, train_set.labels, o, [&](int epoch) {
    last = evaluate(chosen, 0, test_x, test_set.labels);
    if (last.top1 > result.best_top1) {
      result.best_top1 = last.top1;
      result.best_epoch = epoch + 1;
    }
    tick();
  });
  result.top1 = last.top1;
  result.top5 = last.top5;
  return result;
}

}  // namespace csml
