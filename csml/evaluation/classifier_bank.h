// Linear classifiers on the same features, one per learning rate, trained side by side as one wide classifier.
#pragma once

#include <cstdint>
#include <vector>

#include "csml/evaluation/accuracy.h"
#include "engine/var.h"

namespace csml {

/// Rate r's classifier: logits[b, r, :] = W_r x_b + b_r. All start alike (W normal with std 0.01, b zero: MoCo's linear
/// protocol) and see the same batches, so each is what it would be if it were trained alone, up to rounding.
class ClassifierBank {
 public:
  ClassifierBank(Device& device, int64_t dim, int classes, std::vector<double> rates, float momentum,
                 float weight_decay, uint64_t seed);

  /// The next steps train at rate * factor; 1 at the start.
  void set_factor(double factor);
  /// Labels in the form that step() takes: [N, R] i32, each once per classifier.
  Tensor targets(const std::vector<int>& labels) const;
  /// One SGD step of every classifier on its mean cross entropy. features [B, D], targets [B, R]. Reads and writes
  /// device memory only, so that it can be part of a recorded Step.
  void step(const Tensor& features, const Tensor& targets);

  /// [B, R * C]
  Tensor logits(const Tensor& features) const;
  /// Counts what the classifiers make of labelled rows; accuracies() of all so far since reset_counts().
  void count(const Tensor& features, const std::vector<int>& labels);
  std::vector<Accuracy> accuracies() const;
  void reset_counts();

  const std::vector<double>& rates() const { return rates_; }
  /// Elements of all classifiers together: R * C * (D + 1).
  int64_t size() const { return weight_.size() + bias_.size(); }
  /// W_r [C, D]
  Tensor weight(size_t rate) const { return part(weight_, static_cast<int64_t>(rate)); }

 private:
  /// Classifier r's rows of a stacked tensor.
  Tensor part(const Tensor& stacked, int64_t r) const { return stacked.rows(r * classes_, classes_); }

  std::vector<double> rates_;
  int classes_;
  float momentum_, weight_decay_;
  Tensor weight_, bias_, weight_momentum_, bias_momentum_;  // stacked: [R * C, D] and [R * C]
  Var weight_leaf_, bias_leaf_;
  Tensor rate_;  // [R], times the factor
  Tensor seed_;  // [1]: undoes the mean over classifiers
  std::vector<int64_t> first_, five_;
  int64_t counted_ = 0;
};

}  // namespace csml
