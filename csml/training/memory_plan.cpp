#include "csml/training/memory_plan.h"

#include <set>

#include "csml/method/levels.h"
#include "csml/method/plan.h"
#include "data/dataset.h"
#include "engine/device.h"

namespace csml {

namespace {

constexpr double kMiB = 1048576;

int64_t queue_count(const Config& config) {
  return base_of(config.method).queue ? static_cast<int64_t>(levels_of(config).size()) : 0;
}

/// In units of a full view: what passes the trained encoder.
double query_forwards(const Config& config) {
  const Base& base = base_of(config.method);
  const Plan plan = plan_of(config);
  std::set<int> trained;  // slots
  for (const Plan::Term& term : plan.terms) {
    trained.insert(term.anchor);
    if (!base.momentum_encoder) trained.insert(term.keys.begin(), term.keys.end());
  }
  const double size = config.augment.crop_size;
  double forwards = 0;
  for (const int slot : trained) {
    const int view = plan.slots[static_cast<size_t>(slot)].view;
    const double side = view < 0 ? size : plan.views[static_cast<size_t>(view)].augment.crop_size;
    forwards += side * side / (size * size);
  }
  return forwards;
}

/// What a query forward of one image keeps for backward, in f32, measured on two.
double activations_of_one(const Config& config, const Encoder& encoder, Device& device, int channels) {
  constexpr int64_t kSample = 2;
  const int64_t size = config.augment.crop_size;
  const size_t before = device.stats().in_use;
  const Tensor images = Tensor::full(device, {kSample, size, size, channels}, 0.5f);
  const Stages stages = encoder.trunk(Var(images), {});
  std::vector<Var> embedded{encoder.project(stages.pooled, {})};
  for (const Level& level : levels_of(config))
    if (level.stage != Encoder::kTop)
      embedded.push_back(encoder.head(level.stage, stages.stage[static_cast<size_t>(level.stage)], {}));
  return static_cast<double>(device.stats().in_use - before) / kSample;
}

}  // namespace

MemoryPlan memory_plan(const Config& config, const Dataset& train, int processes) {
  const auto device = Device::open("cpu");
  const Encoder encoder(*device, config.model, train.channels(), config.train.seed, true, encoder_parts(config));
  const bool half = config.train.precision != "fp32";
  const int64_t part = config.train.batch_size / processes / config.train.accumulate;  // of one backward pass
  MemoryPlan plan;
  plan.parameters = encoder.params().count();
  // q, k, gradient, momentum; 16-bit copies of q and k
  plan.state = static_cast<double>(plan.parameters) * (4 * 4 + (half ? 2 * 2 : 0));
  // 16 bits: a rounded copy for the loss
  plan.queue = static_cast<double>(queue_count(config)) * static_cast<double>(config.method.queue) * config.model.dim *
               (half ? 6 : 4);
  plan.activations =
      activations_of_one(config, encoder, *device, train.channels()) * static_cast<double>(part) / (half ? 2 : 1);
  plan.query_forwards = query_forwards(config);
  return plan;
}

std::string plan_text(const Config& config) {
  const auto train = open_dataset(config.data.train);
  const MemoryPlan plan = memory_plan(config, *train);
  const int64_t queues = queue_count(config), steps = train->size() / config.train.batch_size;
  std::string text;
  text += cat("data        {}\n", train->describe());
  text += cat("steps       {} per epoch, {} in {} epochs\n", steps, steps * config.train.epochs, config.train.epochs);
  text += cat("parameters  {:.2f} M; encoders, gradient and momentum {:.1f} MiB\n",
              static_cast<double>(plan.parameters) / 1e6, plan.state / kMiB);
  if (queues > 0)
    text += cat("queue       {} x {}{}: {:.1f} MiB\n", config.method.queue, config.model.dim,
                queues > 1 ? cat(" for each of {} levels", queues) : "", plan.queue / kMiB);
  text += cat("activations {:.3g} query forward{} of {}: {:.1f} MiB kept for backward\n", plan.query_forwards,
              plan.query_forwards == 1 ? "" : "s", config.train.batch_size / config.train.accumulate,
              plan.activations * plan.query_forwards / kMiB);
  text += cat("total       about {:.1f} MiB of device memory\n", plan.total() / kMiB);
  return text;
}

void check_memory(const MemoryPlan& plan, const Config& config, uint64_t available) {
  if (available == 0 || plan.total() <= static_cast<double>(available)) return;
  const double activations = 1.15 * plan.activations * plan.query_forwards;
  const bool batch = activations >= plan.queue && activations >= plan.state, queue = plan.queue >= plan.state;
  const std::string change =
      batch   ? cat("lower --batch-size ({}) or augment.crop_size ({}), or raise train.accumulate ({})",
                    config.train.batch_size, config.augment.crop_size, config.train.accumulate)
      : queue ? cat("lower method.queue ({})", config.method.queue)
              : cat("lower model.width ({}) or model.depth ({})", config.model.width, config.model.depth);
  throw UsageError(
      cat("this run needs about {:.0f} MiB of memory (activations {:.0f}, queue {:.0f}, encoders {:.0f}) and "
          "{:.0f} MiB are available: {}; --dry-run shows the plan",
          plan.total() / kMiB, activations / kMiB, plan.queue / kMiB, plan.state / kMiB,
          static_cast<double>(available) / kMiB, change));
}

}  // namespace csml
