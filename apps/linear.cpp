// csml linear: linear probe on cached features, or with --augment on an encoder run at every step.
#include <chrono>

#include "apps/feature_set.h"
#include "apps/kept_result.h"
#include "apps/linear_augmented.h"
#include "csml/evaluation/probe_linear.h"
#include "engine/log.h"

namespace csml {
namespace {

struct Options : LabelledOptions {
  LinearProbeOptions probe;
  double holdout_percent = 10;
  bool augment = false;
  LinearAugmented augmented;
};

/// --augment: the options both protocols share are taken over; a grid only where it was asked for, else MoCo's rate 30.
int run_with_augmentation(Options& o, bool own_rates) {
  if (!o.train_features.empty() || !o.test_features.empty())
    throw UsageError("linear --augment runs an encoder: it takes no --train-features and --test-features");
  if (o.probe.standardise) throw UsageError("linear --augment takes no --standardise");
  AugmentedProbeOptions& probe = o.augmented.probe;
  probe.epochs = o.probe.epochs;
  probe.batch_size = o.probe.batch_size;
  if (own_rates) probe.learning_rates = o.probe.learning_rates;
  probe.weight_decay = o.probe.weight_decay;
  probe.holdout = o.holdout_percent / 100;
  probe.seed = o.probe.seed;
  return run_linear_augmented(o, o.augmented);
}

int run(Options& o) {
  start(o.common);
  const auto begin = std::chrono::steady_clock::now();
  const auto device = Device::open(o.source.device);
  const FeatureSets sets = open_feature_sets(*device, o, "linear");
  const Features seen = sets.train->all(false, "train features"), unseen = sets.test->all(false, "test features");
  LinearProbeResult result;
  {
    std::unique_ptr<Progress> progress;
    o.probe.holdout = o.holdout_percent / 100;
    o.probe.progress = [&](int64_t done, int64_t total) {
      if (!progress) progress = std::make_unique<Progress>("linear probe", total, "steps");
      progress->update(done);
    };
    result = linear_probe(seen, unseen, sets.class_count, o.probe);
    if (progress) progress->finish();
  }

  const bool chosen = o.probe.learning_rates.size() > 1;
  const std::string protocol =
      cat("linear probe on cached features without augmentation{}, SGD {:g}, {} epochs, rate x 0.1 at {:g} of them, "
          "batch {}, weight decay {:g}, rate {:g} {}, last epoch, {}",
          o.probe.standardise ? ", standardised per feature" : "", o.probe.momentum, o.probe.epochs,
          fmt::join(o.probe.milestones, ", "), o.probe.batch_size, o.probe.weight_decay, result.learning_rate,
          chosen ? cat("chosen on {:g} % of the training data held out, then trained on all of it", o.holdout_percent)
                 : std::string("given"),
          sets.protocol);
  nlohmann::json json = sets.json;
  json.update({{"task", "linear"},
               {"top1", result.top1},
               {"top5", result.top5},
               {"best_top1", result.best_top1},
               {"best_epoch", result.best_epoch},
               {"learning_rate", result.learning_rate},
               {"epochs", o.probe.epochs},
               {"seed", o.probe.seed},
               {"bad_images", seen.bad_images + unseen.bad_images},
               {"protocol", protocol},
               {"memory_bytes", device->stats().reserved},
               {"seconds", std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count()}});
  json["holdout_top1"] = nlohmann::json::array();
  std::string text;
  for (const auto& [rate, top1] : result.holdout_top1) {
    json["holdout_top1"].push_back({{"learning_rate", rate}, {"top1", top1}});
    text += cat("  rate {:<8g} {:6.2f} % on the hold-out{}\n", rate, top1, rate == result.learning_rate ? "  <-" : "");
  }
  text += cat("linear  top-1 {:6.2f} %   top-5 {:6.2f} %   (last epoch; best epoch on test {}: {:.2f} %)\n",
              result.top1, result.top5, result.best_epoch, result.best_top1);
  text += protocol + "\n";
  answer_result(o.common, json, text);
  return 0;
}

}  // namespace

Command linear_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  add_labelled_options(app, *o, true);
  app.add_option("--epochs", o->probe.epochs, "Passes over the training images or their features")
      ->check(CLI::Range(1, 100000))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--batch-size", o->probe.batch_size, "Images or features per step")
      ->check(CLI::Range(1, 1 << 20))
      ->type_name("N")
      ->capture_default_str();
  const CLI::Option* rates =
      app.add_option("--learning-rates", o->probe.learning_rates,
                     "Tried side by side in one pass, chosen on the hold-out; with --augment 30 alone unless given")
          ->delimiter(',')
          ->check(CLI::PositiveNumber)
          ->type_name("LR,…")
          ->capture_default_str();
  app.add_option("--weight-decay", o->probe.weight_decay, "Of the classifier")
      ->check(CLI::NonNegativeNumber)
      ->type_name("X")
      ->capture_default_str();
  app.add_option("--holdout", o->holdout_percent, "Percent of each class held out to choose the rate; never of --test")
      ->check(CLI::Range(1.0, 90.0))
      ->type_name("PERCENT")
      ->capture_default_str();
  app.add_option("--seed", o->probe.seed, "Of the order of the features and the start of the classifier")
      ->type_name("N")
      ->capture_default_str();
  app.add_flag("--standardise", o->probe.standardise, "Zero mean and unit variance per feature (of --train)");
  app.add_flag("--augment", o->augment,
               "The full protocol: random resized crops and flips, the frozen encoder run at every step");
  app.add_option("--blocks", o->augmented.probe.blocks,
                 "With --augment: last residual blocks whose pooled output is probed (CsMl's authors: 4)")
      ->check(CLI::Range(1, 64))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--crop-min", o->augmented.crop_min, "With --augment: least share of an image's area in a crop")
      ->check(CLI::Range(0.001, 1.0))
      ->type_name("X")
      ->capture_default_str();
  app.add_option("--eval-every", o->augmented.probe.eval_every,
                 "With --augment: epochs between tests; the last epoch is always tested")
      ->check(CLI::Range(1, 100000))
      ->type_name("N")
      ->capture_default_str();
  app.footer(
      "Example: csml linear --checkpoint runs/demo --train cifar10:DIR --test 'cifar10:DIR?split=test'\n"
      "         csml linear --train-features a.safetensors --test-features b.safetensors    (files of csml embed)\n"
      "         csml linear --augment --blocks 4 --learning-rates 3,10,30,60 …\n"
      "With --augment and several rates the classifiers are trained on what the hold-out leaves; with one on "
      "everything.");
  return [o, rates] { return o->augment ? run_with_augmentation(*o, rates->count() > 0) : run(*o); };
}

}  // namespace csml
