#include "csml/evaluation/classifier_bank.h"

#include <algorithm>

#include "engine/ops.h"
#include "engine/params.h"

namespace csml {

ClassifierBank::ClassifierBank(Device& device, int64_t dim, int classes, std::vector<double> rates, float momentum,
                               float weight_decay, uint64_t seed)
    : rates_(std::move(rates)), classes_(classes), momentum_(momentum), weight_decay_(weight_decay) {
  CHECK(!rates_.empty() && classes > 1, "a linear probe needs a learning rate and two classes");
  const auto count = static_cast<int64_t>(rates_.size());
  weight_ = Tensor(device, {count * classes, dim});
  bias_ = Tensor::full(device, {count * classes}, 0.f);
  weight_momentum_ = Tensor::full(device, weight_.shape(), 0.f);
  bias_momentum_ = Tensor::full(device, bias_.shape(), 0.f);
  weight_leaf_ = Var::leaf(weight_, like(weight_));
  bias_leaf_ = Var::leaf(bias_, like(bias_));
  rate_ = Tensor(device, {count});
  seed_ = Tensor::full(device, {1}, static_cast<float>(count));
  Params start(device);
  const int id = start.add("fc.weight", {classes, dim}, Init::normal(0.01f));
  start.build(seed, false);
  for (int64_t r = 0; r < count; ++r) copy(start.parameter(id).value(), part(weight_, r));
  set_factor(1);
  reset_counts();
}

void ClassifierBank::set_factor(double factor) {
  std::vector<float> now;
  for (double rate : rates_) now.push_back(static_cast<float>(rate * factor));
  rate_.upload(now);
}

Tensor ClassifierBank::targets(const std::vector<int>& labels) const {
  std::vector<int32_t> repeated;
  repeated.reserve(labels.size() * rates_.size());
  for (int label : labels) repeated.insert(repeated.end(), rates_.size(), label);
  return Tensor::from(weight_.device(), {static_cast<int64_t>(labels.size()), static_cast<int64_t>(rates_.size())},
                      repeated);
}

void ClassifierBank::step(const Tensor& features, const Tensor& targets) {
  const int64_t rows = features.shape()[0] * static_cast<int64_t>(rates_.size());
  weight_leaf_.mark_unwritten();
  bias_leaf_.mark_unwritten();
  const Var wide = linear(Var(features), weight_leaf_, bias_leaf_);
  // The mean is over the rows of all classifiers: the seed makes it each classifier's own.
  cross_entropy(reshape(wide, {rows, classes_}), targets.reshape({rows})).backward(seed_);
  for (int64_t r = 0; r < rate_.size(); ++r) {
    const Tensor rate = rate_.rows(r, 1);
    sgd(part(weight_leaf_.grad(), r), part(weight_, r), part(weight_momentum_, r), rate, momentum_, weight_decay_);
    sgd(part(bias_leaf_.grad(), r), part(bias_, r), part(bias_momentum_, r), rate, momentum_, weight_decay_);
  }
}

Tensor ClassifierBank::logits(const Tensor& features) const {
  const NoGrad no_grad;
  return linear(Var(features), Var(weight_), Var(bias_)).value();
}

void ClassifierBank::count(const Tensor& features, const std::vector<int>& labels) {
  const std::vector<float> values = logits(features).host<float>();
  for (size_t i = 0; i < labels.size(); ++i)
    for (size_t r = 0; r < rates_.size(); ++r) {
      const float* row = values.data() + (i * rates_.size() + r) * static_cast<size_t>(classes_);
      const int ahead = classes_ahead(row, classes_, labels[i]);
      first_[r] += ahead == 0;
      five_[r] += ahead < 5;
    }
  counted_ += static_cast<int64_t>(labels.size());
}

std::vector<Accuracy> ClassifierBank::accuracies() const {
  const double n = static_cast<double>(std::max<int64_t>(1, counted_));
  std::vector<Accuracy> out;
  for (size_t r = 0; r < rates_.size(); ++r)
    out.push_back({100.0 * static_cast<double>(first_[r]) / n, 100.0 * static_cast<double>(five_[r]) / n});
  return out;
}

void ClassifierBank::reset_counts() {
  first_.assign(rates_.size(), 0);
  five_.assign(rates_.size(), 0);
  counted_ = 0;
}

}  // namespace csml
