// The full linear protocol: a frozen encoder run on augmented images at every step, linear classifiers on the pooled
// output of its last blocks, a grid of learning rates trained in one pass.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "csml/evaluation/features.h"
#include "csml/method/encoder.h"

namespace csml {

/// Defaults: MoCo's linear protocol.
struct AugmentedProbeOptions {
  std::vector<double> learning_rates{30};
  int epochs = 100, batch_size = 256;
  float momentum = 0.9f, weight_decay = 0;
  std::vector<double> milestones{0.6, 0.8};  // shares of the epochs at which the rates fall to a tenth
  double holdout = 0.1;                      // of each class, to choose among several rates; one rate holds nothing out
  int blocks = 1;                            // last residual blocks with classifiers of their own (the authors: 4)
  int eval_every = 1;                        // epochs between tests; the last epoch is always tested
  uint64_t seed = 0;
  AugmentConfig augment;  // crops and flips of the training images
  FeatureOptions eval;    // un-augmented images: transform, normalisation, batch, workers of everything
  std::function<void(int64_t done, int64_t total, double top1)> progress;  // steps; first rate's last test or -1
};

/// One block's classifier, of the rate that did best on the hold-out.
struct ProbedBlock {
  std::string name;  // "layer4.2"
  int64_t dim = 0;
  double learning_rate = 0;
  double top1 = 0, top5 = 0;  // percent on test after the last epoch
  double best_top1 = 0;       // of that rate over the epochs: named, never the headline
  int best_epoch = 0;
  std::vector<std::pair<double, double>> rate_top1;  // (rate, hold-out accuracy); empty for one rate
};

struct AugmentedProbeResult {
  std::vector<ProbedBlock> blocks;  // in the network's order: the last is the usual pooled feature
  int64_t train_images = 0;         // trained on: without the hold-out
  int64_t bad_images = 0;
};

/// The encoder stays in inference mode. Throws Error for features that are not finite.
AugmentedProbeResult linear_probe_augmented(Device& device, const Encoder& encoder, const Dataset& train,
                                            const Dataset& test, const AugmentedProbeOptions& options);

}  // namespace csml
