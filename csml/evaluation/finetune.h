// Fine-tuning on few labels, and self-training on pseudo labels of low entropy. docs/method.md, section 8.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "csml/evaluation/classifier.h"

namespace csml {

/// Defaults: SwAV's recipe for 10 % of ImageNet's labels (its eval_semisup.py).
struct FinetuneOptions {
  int epochs = 20, batch_size = 256;          // a smaller data set is one batch
  double trunk_rate = 0.01, head_rate = 0.2;  // at the start; constant inside an epoch
  std::vector<double> milestones{0.6, 0.8};   // shares of the epochs (12 and 16 of 20) at which both rates fall …
  double decay = 0.2;                         // … to this part
  float momentum = 0.9f, weight_decay = 0;
  uint64_t seed = 0;
  AugmentConfig augment;  // of the training images
  FeatureOptions eval;    // of the test images; workers and bad-image handling of both
  int eval_every = 1;     // epochs between tests; the last epoch is always tested
  std::function<void(const struct FinetuneEpoch&)> after_epoch;
};

struct FinetuneEpoch {
  int epoch = 0;  // 1 = after the first
  int64_t step = 0;
  double loss = 0, train_top1 = 0;  // means over the epoch, of augmented images
  double trunk_rate = 0, head_rate = 0;
  double top1 = -1, top5 = -1;  // percent on test; -1: not tested after this epoch
};

struct FinetuneResult {
  std::unique_ptr<Classifier> classifier;  // after the last epoch
  double top1 = 0, top5 = 0;               // percent on test after the last epoch
  double best_top1 = 0;                    // over the epochs: named, never the headline
  int best_epoch = 0;
  int64_t steps = 0, bad_images = 0;
};

/// Trains the whole network: SGD, trunk and head with rates of their own, batch statistics over the whole batch (SwAV
/// synchronises them). start: the encoder whose trunk is the start; null: random weights. test may be null. Throws
/// Error when the loss stops being finite.
FinetuneResult finetune(Device& device, const ModelConfig& model, const Params* start, const Dataset& train,
                        const Dataset* test, const FinetuneOptions& options);

/// What held-out labelled images say about predictions below an entropy.
struct EntropyThreshold {
  double bits = -1;            // largest entropy that is kept; -1: none is
  int64_t held = 0, kept = 0;  // held-out images; those of at most that entropy
  double precision = 0;        // of the kept, percent
};
/// The threshold with the most right minus wrong predictions below it: images are taken by ascending entropy as long as
/// the next ones are right more often than wrong. Equal entropies go together.
EntropyThreshold choose_threshold(const Predictions& held, const std::vector<int>& labels);

}  // namespace csml
