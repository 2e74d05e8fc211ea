#include "csml/evaluation/probe_linear.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "csml/evaluation/classifier_bank.h"
#include "csml/evaluation/label_split.h"
#include "engine/ops.h"
#include "engine/step.h"
#include "kernels/random.h"

namespace csml {

namespace {

constexpr int64_t kBlock = 1024;  // rows of one pass that is no training step: bounds what it holds beside the features

Tensor numbers(Device& device, std::span<const int32_t> rows) {
  return Tensor::from(device, {static_cast<int64_t>(rows.size())}, rows);
}

/// What the classifiers see of a row: the row itself, or standardised by statistics of the training features.
class Input {
 public:
  Input() = default;
  /// Mean and variance per dimension of all rows of x, summed in double.
  explicit Input(const Tensor& x) {
    const int64_t n = x.shape()[0], d = x.shape()[1];
    std::vector<double> sum(static_cast<size_t>(d)), squares(static_cast<size_t>(d));
    for (int64_t first = 0; first < n; first += kBlock) {
      const std::vector<float> values = x.rows(first, std::min(kBlock, n - first)).host<float>();
      for (size_t i = 0; i < values.size(); ++i) {
        const double v = values[i];
        sum[i % sum.size()] += v;
        squares[i % sum.size()] += v * v;
      }
    }
    std::vector<float> mean, var;
    for (size_t j = 0; j < sum.size(); ++j) {
      const double m = sum[j] / static_cast<double>(n);
      mean.push_back(static_cast<float>(m));
      var.push_back(static_cast<float>(std::max(0.0, squares[j] / static_cast<double>(n) - m * m)));
    }
    Device& device = x.device();
    mean_ = Tensor::from(device, {d}, mean);
    var_ = Tensor::from(device, {d}, var);
    one_ = Tensor::full(device, {d}, 1.f);
    zero_ = Tensor::full(device, {d}, 0.f);
  }
  Tensor operator()(const Tensor& rows) const {
    if (!mean_) return rows;
    return batch_norm_inference(Var(rows), Var(one_), Var(zero_), mean_, var_, {}, false).value();
  }

 private:
  Tensor mean_, var_, one_, zero_;
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

/// Accuracies of every classifier on the rows of x that are named, in blocks.
std::vector<Accuracy> evaluate(ClassifierBank& bank, const Input& input, const Features& set,
                               std::span<const int32_t> rows) {
  bank.reset_counts();
  std::vector<int> labels;
  for (size_t first = 0; first < rows.size(); first += kBlock) {
    const auto part = rows.subspan(first, std::min<size_t>(kBlock, rows.size() - first));
    labels.clear();
    for (int32_t row : part) labels.push_back(set.labels[static_cast<size_t>(row)]);
    bank.count(input(gather(set.values, numbers(set.values.device(), part))), labels);
  }
  return bank.accuracies();
}

/// Trains every classifier on the same batches of the rows in `order`; calls after_epoch(epoch) when an epoch is over.
void train(ClassifierBank& bank, const Input& input, const Features& set, std::vector<int32_t> order,
           const LinearProbeOptions& o, const std::function<void(int epoch)>& after_epoch) {
  const auto n = static_cast<int64_t>(order.size()), batch = std::min<int64_t>(o.batch_size, n);
  const Tensor targets = bank.targets(set.labels), rows(set.values.device(), {batch}, DType::i32);
  Step step(set.values.device(), [&] { bank.step(input(gather(set.values, rows)), gather(targets, rows)); });
  for (int epoch = 0; epoch < o.epochs; ++epoch) {
    Random random(o.seed, Purpose::probe, static_cast<uint64_t>(epoch));
    for (int64_t i = n - 1; i > 0; --i)
      std::swap(order[static_cast<size_t>(i)], order[random.below(static_cast<uint32_t>(i + 1))]);
    double factor = 1;
    for (double milestone : o.milestones)
      if (epoch >= milestone * o.epochs) factor *= 0.1;
    bank.set_factor(factor);
    {
      const FewThreads few(6 * batch * bank.size());
      for (int64_t first = 0; first + batch <= n; first += batch) {
        rows.upload(std::span<const int32_t>(order).subspan(static_cast<size_t>(first), static_cast<size_t>(batch)));
        step.run();
      }
    }
    after_epoch(epoch);
  }
}

void check_finite(const Tensor& features) {
  const Tensor flag(features.device(), {1}, DType::i32);
  all_finite(features, flag);
  CHECK(flag.host<int32_t>()[0], "the features hold NaN or infinity: the encoder has diverged");
}

std::vector<int32_t> all_rows(const Features& set) {
  std::vector<int32_t> rows(set.labels.size());
  std::iota(rows.begin(), rows.end(), 0);
  return rows;
}

}  // namespace

LinearProbeResult linear_probe(const Features& train_set, const Features& test_set, int classes,
                               const LinearProbeOptions& o) {
  CHECK(classes > 1, "a linear probe needs at least two classes");
  CHECK(!o.learning_rates.empty() && o.epochs > 0, "a linear probe needs a learning rate and an epoch");
  for (const Features* set : {&train_set, &test_set}) check_finite(set->values);
  Device& device = train_set.values.device();
  const Input input = o.standardise ? Input(train_set.values) : Input();
  const int64_t dim = train_set.values.shape()[1];
  const int64_t passes = (o.learning_rates.size() > 1 ? 2 : 1) * int64_t{o.epochs};
  int64_t done = 0;
  auto tick = [&] {
    if (o.progress) o.progress(++done, passes);
  };
  const auto bank_of = [&](const std::vector<double>& rates) {
    return ClassifierBank(device, dim, classes, rates, o.momentum, o.weight_decay, o.seed);
  };
  LinearProbeResult result;
  result.learning_rate = o.learning_rates[0];

  if (o.learning_rates.size() > 1) {  // choose on held-out training images
    const HoldOut split = hold_out(train_set.labels, classes, o.holdout, o.seed);
    CHECK(!split.rest.empty() && !split.held.empty(),
          "too few labelled images ({}) to hold some out for the learning rate", train_set.labels.size());
    ClassifierBank candidates = bank_of(o.learning_rates);
    train(candidates, input, train_set, split.rest, o, [&](int) { tick(); });
    const std::vector<Accuracy> on_held = evaluate(candidates, input, train_set, split.held);
    double best = -1;
    for (size_t r = 0; r < on_held.size(); ++r) {
      result.holdout_top1.emplace_back(o.learning_rates[r], on_held[r].top1);
      if (on_held[r].top1 > best) {
        best = on_held[r].top1;
        result.learning_rate = o.learning_rates[r];
      }
    }
  }
  ClassifierBank chosen = bank_of({result.learning_rate});
  const std::vector<int32_t> tested = all_rows(test_set);
  Accuracy last;
  train(chosen, input, train_set, all_rows(train_set), o, [&](int epoch) {
    last = evaluate(chosen, input, test_set, tested)[0];
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
