#include "csml/classifier_bank.h"

#include <algorithm>

#include "engine/ops.h"
#include "kernels/random.h"

namespace csml {

ClassifierBank::ClassifierBank(Device& device, int64_t dim, int classes, std::vector<double> rates, float momentum,
                               float weight_decay, uint64_t seed)
    : params_(device), classes_(classes), rates_(std::move(rates)), momentum_(momentum), weight_decay_(weight_decay) {
  CHECK(!rates_.empty() && classes > 1, "a linear probe needs a learning rate and two classes");
  const auto count = static_cast<int64_t>(rates_.size());
  weight_ = params_.add("weight", {count * classes, dim}, Init::constant(0.f));
  bias_ = params_.add("bias", {count * classes}, Init::constant(0.f));
  params_.build(seed, true);
  Random random(seed, Purpose::init);
  std::vector<float> start(static_cast<size_t>(classes * dim));
  for (float& w : start) w = 0.01f * random.normal();
  for (size_t r = 0; r < rates_.size(); ++r) {
    weight(r).upload(start);
    rate_.emplace_back(device, Shape{1});
  }
  buffer_ = Tensor::full(device, params_.master().shape(), 0.f);
  reset_counts();
}

Tensor ClassifierBank::weight(size_t rate) const {
  return params_.parameter(weight_).value().rows(static_cast<int64_t>(rate) * classes_, classes_);
}

void ClassifierBank::step(const Tensor& features, const std::vector<int>& labels, double factor) {
  const int64_t batch = features.shape()[0], count = static_cast<int64_t>(rates_.size());
  Device& device = features.device();
  if (factor != factor_) {
    factor_ = factor;
    for (size_t r = 0; r < rates_.size(); ++r)
      rate_[r].upload(std::vector<float>{static_cast<float>(rates_[r] * factor)});
  }
  std::vector<int32_t> repeated;
  for (int label : labels) repeated.insert(repeated.end(), rates_.size(), label);
  params_.begin_gradients();
  // The mean over B * R rows is 1/R of the sum of the classifiers' own means.
  const Var wide = linear(Var(features), params_.parameter(weight_), params_.parameter(bias_));
  const Var loss =
      cross_entropy(reshape(wide, {batch * count, classes_}), Tensor::from(device, {batch * count}, repeated));
  scale(loss, static_cast<float>(count)).backward();
  params_.finish_gradients();
  for (int id : {weight_, bias_}) {
    const Params::Entry& entry = params_.entries()[static_cast<size_t>(id)];
    const int64_t part = entry.shape.size() / count;
    for (int64_t r = 0; r < count; ++r) {
      const auto of = [&](const Tensor& flat) { return flat.span(entry.offset + r * part, {part}); };
      sgd(of(params_.grad()), of(params_.master()), of(buffer_), rate_[static_cast<size_t>(r)], momentum_,
          weight_decay_);
    }
  }
}

Tensor ClassifierBank::logits(const Tensor& features) const {
  const NoGrad no_grad;
  return linear(Var(features), params_.parameter(weight_), params_.parameter(bias_)).value();
}

void ClassifierBank::count(const Tensor& features, const std::vector<int>& labels) {
  const std::vector<float> values = logits(features).host<float>();
  for (size_t i = 0; i < labels.size(); ++i)
    for (size_t r = 0; r < rates_.size(); ++r) {
      const float* row = values.data() + (i * rates_.size() + r) * static_cast<size_t>(classes_);
      const float own = row[labels[i]];
      int better = 0;  // classes ahead of the truth; an equal score of a lower class counts as ahead
      for (int c = 0; c < classes_; ++c) better += row[c] > own || (row[c] == own && c < labels[i]);
      first_[r] += better == 0;
      five_[r] += better < 5;
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
