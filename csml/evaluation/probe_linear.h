// Linear probe on cached features: softmax regression by SGD, a grid of learning rates trained side by side.
#pragma once

#include <functional>
#include <vector>

#include "csml/evaluation/features.h"

namespace csml {

struct LinearProbeOptions {
  std::vector<double> learning_rates{30, 10,  3,
                                     1,  0.3, 0.1};  // chosen on a hold-out of the training data, never on test
  int epochs = 100;
  int batch_size = 256;
  float momentum = 0.9f, weight_decay = 0;
  std::vector<double> milestones{0.6, 0.8};  // shares of the epochs at which the rate falls to a tenth
  double holdout = 0.1;                      // share of each class held out to choose the rate
  uint64_t seed = 0;
  bool standardise = false;  // per-dimension zero mean and unit variance (of the training features)
  std::function<void(int64_t done, int64_t total)> progress;
};

struct LinearProbeResult {
  double top1 = 0, top5 = 0;  // percent on test, after the last epoch
  double best_top1 = 0;       // over epochs: named, never the headline
  int best_epoch = 0;
  double learning_rate = 0;                             // chosen
  std::vector<std::pair<double, double>> holdout_top1;  // (rate, accuracy on the hold-out)
};

/// Several rates: trained side by side without the hold-out, then the one that did best on it alone on everything.
/// Holds both sets of features, the classifiers and blocks of 1,024 rows, never a second copy of the features. Throws
/// Error for features that are not finite.
LinearProbeResult linear_probe(const Features& train, const Features& test, int class_count,
                               const LinearProbeOptions& options);

}  // namespace csml
