// Linear classifiers on the same features, one per learning rate, trained side by side as one wide classifier.
#pragma once

#include <vector>

#include "csml/features.h"

namespace csml {

struct Accuracy {
  double top1 = 0, top5 = 0;  // percent
};

/// Rate r's classifier: logits[b, r, :] = W_r x_b + b_r. All start alike (W normal with std 0.01, b zero: MoCo's linear
/// protocol) and see the same batches, so each is what it would be if it were trained alone, up to rounding.
class ClassifierBank {
 public:
  ClassifierBank(Device& device, int64_t dim, int classes, std::vector<double> rates, float momentum,
                 float weight_decay, uint64_t seed);

  /// One SGD step of every classifier on its mean cross entropy, at rate * factor. features [B, D], labels [B].
  void step(const Tensor& features, const std::vector<int>& labels, double factor);
  /// [B, R * C]
  Tensor logits(const Tensor& features) const;
  /// Counts what the classifiers make of labelled rows; accuracies() of all so far since reset_counts().
  void count(const Tensor& features, const std::vector<int>& labels);
  std::vector<Accuracy> accuracies() const;
  void reset_counts();

  const std::vector<double>& rates() const { return rates_; }
  /// W_r [C, D]
  Tensor weight(size_t rate) const;

 private:
  Params params_;
  int weight_, bias_, classes_;
  std::vector<double> rates_;
  float momentum_, weight_decay_;
  Tensor buffer_;             // momentum, laid out like params_.master()
  std::vector<Tensor> rate_;  // [1] each
  double factor_ = -1;
  std::vector<int64_t> first_, five_;
  int64_t counted_ = 0;
};

}  // namespace csml
