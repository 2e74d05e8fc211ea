// A ResNet trunk with a linear classifier, both trained: fine-tuning and its comparison from nothing.
#pragma once

#include <memory>
#include <vector>

#include "csml/evaluation/features.h"
#include "csml/method/encoder.h"

namespace csml {

class Classifier {
 public:
  /// Random weights drawn by `seed`; the head as PyTorch's Linear.
  Classifier(Device& device, const ModelConfig& model, int in_channels, int classes, uint64_t seed);

  /// Copies trunk parameters and running statistics of an encoder of the same architecture.
  void load_trunk(const Params& encoder);
  /// [N, classes]
  Var logits(const Var& images, const Forward& forward) const;

  /// Trunk and head are two parameter groups: buffers, gradients and optimizers of their own.
  const Params& trunk() const { return *trunk_params_; }
  const Params& head() const { return *head_params_; }
  int classes() const { return classes_; }
  /// Everything under torchvision's names (fc.weight, fc.bias).
  std::vector<NamedArray> to_host() const;

 private:
  std::unique_ptr<Params> trunk_params_, head_params_;
  ResNet trunk_;
  Linear head_;
  int classes_;
};

struct Predictions {
  std::vector<int> label;       // [N] arg max, the first of equals
  std::vector<double> entropy;  // [N] of the softmax, bits: -sum p log2 p
  double top1 = 0, top5 = 0;    // percent, against the data set's labels where it has them
  int64_t bad_images = 0;
};

/// Un-augmented images in inference mode; `options` as for features (transform, normalisation, batch, workers).
Predictions predict(Device& device, const Classifier& classifier, const Dataset& dataset,
                    const FeatureOptions& options);

}  // namespace csml
