#include "apps/linear_augmented.h"
#include "apps/kept_result.h"

#include <chrono>
#include <optional>

#include "engine/log.h"

namespace csml {

int run_linear_augmented(const LabelledOptions& asked, LinearAugmented& o) {
  if (asked.source.features != "backbone") throw UsageError("linear --augment takes --features backbone");
  start(asked.common);
  const auto begin = std::chrono::steady_clock::now();
  const auto device = Device::open(asked.source.device);
  const LabelledSets sets = open_labelled(asked, "linear");
  const auto& [train, test] = sets;
  const FeatureSource source(*device, asked.source, *train);
  source.check_channels(*train);
  AugmentedProbeOptions& probe = o.probe;
  probe.eval = source.options();
  AugmentConfig& augment = probe.augment = source.options().normalise;  // mean, deviation, flips
  augment.crop_size = source.options().transform.size;
  augment.scale_min = static_cast<float>(o.crop_min);
  augment.scale_max = 1;
  augment.jitter_p = augment.gray_p = augment.blur_p = augment.solarize_p = 0;
  augment.channels = train->channels();

  AugmentedProbeResult result;
  {
    std::optional<Progress> progress;
    probe.progress = [&](int64_t done, int64_t total, double top1) {
      if (!progress) progress.emplace("linear probe", total, "steps");
      progress->update(done, top1 >= 0 ? cat("top-1 {:.1f} %", top1) : "");
    };
    result = linear_probe_augmented(*device, *source.model().encoder, *train, *test, probe);
    if (progress) progress->finish();
  }

  const ProbedBlock& last = result.blocks.back();
  const bool chosen = probe.learning_rates.size() > 1;
  const std::string protocol = cat(
      "linear probe, frozen encoder run on augmented images at every step (random resized crops {:g}..1, flips p "
      "{:g}), SGD {:g}, {} epochs, rate x 0.1 at {:g} of them, batch {}, rate {:g}{}, {} training images, last epoch, "
      "{}",
      o.crop_min, augment.flip_p, probe.momentum, probe.epochs, fmt::join(probe.milestones, ", "), probe.batch_size,
      last.learning_rate,
      chosen ? cat(" chosen on {:g} % of the training data held out", 100 * probe.holdout) : std::string(" given"),
      result.train_images, source.protocol());
  nlohmann::json json = source.describe();
  json.update({{"task", "linear"},
               {"augment", true},
               {"top1", last.top1},
               {"top5", last.top5},
               {"best_top1", last.best_top1},
               {"best_epoch", last.best_epoch},
               {"learning_rate", last.learning_rate},
               {"epochs", probe.epochs},
               {"n_train", result.train_images},
               {"n_test", test->size()},
               {"train", asked.train},
               {"test", asked.test},
               {"seed", probe.seed},
               {"bad_images", result.bad_images},
               {"protocol", protocol},
               {"seconds", std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count()}});
  json["blocks"] = nlohmann::json::array();
  std::string text;
  for (const ProbedBlock& block : result.blocks) {
    nlohmann::json rates = nlohmann::json::array();
    for (const auto& [rate, top1] : block.rate_top1) {
      rates.push_back({{"learning_rate", rate}, {"top1", top1}});
      text += cat("  {} rate {:<8g} {:6.2f} % on the hold-out{}\n", block.name, rate, top1,
                  rate == block.learning_rate ? "  <-" : "");
    }
    json["blocks"].push_back({{"block", block.name},
                              {"dim", block.dim},
                              {"learning_rate", block.learning_rate},
                              {"top1", block.top1},
                              {"top5", block.top5},
                              {"best_top1", block.best_top1},
                              {"best_epoch", block.best_epoch},
                              {"holdout_top1", rates}});
    text += cat("linear  {:<10} top-1 {:6.2f} %   top-5 {:6.2f} %   (last epoch; best epoch on test {}: {:.2f} %)\n",
                block.name, block.top1, block.top5, block.best_epoch, block.best_top1);
  }
  json["holdout_top1"] = json["blocks"].back()["holdout_top1"];
  text += protocol + "\n";
  answer_result(asked.common, json, text);
  return 0;
}

}  // namespace csml
