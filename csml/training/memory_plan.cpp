#include "csml/training/memory_plan.h"

#include <set>

#include "csml/method/levels.h"
#include "csml/method/plan.h"
#include "data/dataset.h"
#include "engine/device.h"

namespace csml {

std::string plan_text(const Config& config) {
  const auto train = open_dataset(config.data.train);
  const auto device = Device::open("cpu");
  const Encoder encoder(*device, config.model, train->channels(), config.train.seed, true, encoder_parts(config));
  const int64_t parameters = encoder.params().count();
  const int64_t size = config.augment.crop_size, batch = config.train.batch_size;
  const int64_t part = batch / config.train.accumulate;  // what one backward pass is of
  const Base& base = base_of(config.method);
  const Plan plan = plan_of(config);
  const std::vector<Level> levels = levels_of(config);
  std::set<int> trained;  // slots that pass the trained encoder
  for (const Plan::Term& term : plan.terms) {
    trained.insert(term.anchor);
    if (!base.momentum_encoder) trained.insert(term.keys.begin(), term.keys.end());
  }
  double query_forwards = 0;  // in units of a full view
  for (const int slot : trained) {
    const int view = plan.slots[static_cast<size_t>(slot)].view;
    const int side = view < 0 ? config.augment.crop_size : plan.views[static_cast<size_t>(view)].augment.crop_size;
    query_forwards += static_cast<double>(side) * side / (static_cast<double>(size) * static_cast<double>(size));
  }
  // What a query forward keeps for backward, measured on two images and scaled.
  double activations = 0;
  {
    constexpr int64_t kSample = 2;
    const size_t before = device->stats().in_use;
    const Tensor images = Tensor::full(*device, {kSample, size, size, train->channels()}, 0.5f);
    const Stages stages = encoder.trunk(Var(images), {});
    std::vector<Var> embedded{encoder.project(stages.pooled, {})};
    for (const Level& level : levels)
      if (level.stage != Encoder::kTop)
        embedded.push_back(encoder.head(level.stage, stages.stage[static_cast<size_t>(level.stage)], {}));
    activations = static_cast<double>(device->stats().in_use - before) * static_cast<double>(part) / kSample;
  }
  const double mib = 1048576.0;
  const bool half = config.train.precision != "fp32";
  if (half) activations /= 2;
  // q, k, gradient, momentum; 16-bit copies of q and k
  const double state = static_cast<double>(parameters) * (4 * 4 + (half ? 2 * 2 : 0)) / mib;
  const auto queues = static_cast<int64_t>(base.negatives == Base::Negatives::queue ? levels.size() : 0);
  // 16 bits: a rounded copy for the loss
  const double queue = static_cast<double>(queues * config.method.queue * config.model.dim) * (half ? 6 : 4) / mib;
  const int64_t steps = train->size() / batch;
  std::string text;
  text += cat("data        {}\n", train->describe());
  text += cat("steps       {} per epoch, {} in {} epochs\n", steps, steps * config.train.epochs, config.train.epochs);
  text += cat("parameters  {:.2f} M; encoders, gradient and momentum {:.1f} MiB\n",
              static_cast<double>(parameters) / 1e6, state);
  if (queues > 0)
    text += cat("queue       {} x {}{}: {:.1f} MiB\n", config.method.queue, config.model.dim,
                queues > 1 ? cat(" for each of {} levels", queues) : "", queue);
  text += cat("activations {:.3g} query forward{} of {}: {:.1f} MiB kept for backward\n", query_forwards,
              query_forwards == 1 ? "" : "s", part, activations * query_forwards / mib);
  text +=
      cat("total       about {:.1f} MiB of device memory\n", state + queue + activations * query_forwards / mib * 1.15);
  return text;
}

}  // namespace csml
