#include "engine/optim.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "engine/ops.h"

namespace csml {

namespace {

/// What follows from new parameters, for optimizers whose kernel does not do it in its own pass. After a step that
/// changed nothing the copies are made anew, the same.
void follow(const Params& params, const OptimizerStep& step) {
  params.update_compute();
  if (!step.average) return;
  const Tensor& average = step.average->master();
  ema(params.master().span(0, average.shape()), average, step.average_momentum, step.finite);
  step.average->update_compute();
}

/// The 16-bit copy of a network's parameters; absent in f32 and without a network.
View copy_of(const Params* params) {
  return params && params->compute_type() != DType::f32 ? View(params->compute()) : View{};
}

class Sgd final : public Optimizer {
 public:
  Sgd(const Params& params, const OptimizerOptions& options)
      : params_(params), options_(options), buffer_(Tensor::full(params.device(), params.master().shape(), 0.f)) {}

  void step(const OptimizerStep& step) override {
    backend(buffer_).sgd({.grad = params_.grad(),
                          .param = params_.master(),
                          .buffer = buffer_,
                          .learning_rate = step.learning_rate,
                          .finite = step.finite,
                          .momentum = options_.momentum,
                          .weight_decay = options_.weight_decay,
                          .inverse_scale = step.inverse_scale,
                          .average = step.average ? View(step.average->master()) : View{},
                          .average_momentum = step.average_momentum,
                          .param_copy = copy_of(&params_),
                          .average_copy = copy_of(step.average)});
  }
  std::vector<std::pair<std::string, Tensor>> state() const override { return {{"momentum", buffer_}}; }

 private:
  const Params& params_;
  OptimizerOptions options_;
  Tensor buffer_;
};

class Lars final : public Optimizer {
 public:
  Lars(const Params& params, const OptimizerOptions& options)
      : params_(params), options_(options), buffer_(Tensor::full(params.device(), params.master().shape(), 0.f)) {
    std::vector<int64_t> offsets;
    std::vector<float> adapt;
    for (const Params::Entry& e : params.entries()) {
      offsets.push_back(e.offset);
      adapt.push_back(e.shape.rank() > 1 ? 1.f : 0.f);  // biases and batch norm: neither adapted nor decayed
    }
    offsets.push_back(params.master().size());
    const int64_t segments = static_cast<int64_t>(adapt.size());
    offsets_ = Tensor::from(params.device(), {segments + 1}, offsets);
    adapt_ = Tensor::from(params.device(), {segments}, adapt);
  }

  void step(const OptimizerStep& step) override {
    backend(buffer_).lars({.grad = params_.grad(),
                           .param = params_.master(),
                           .buffer = buffer_,
                           .offsets = offsets_,
                           .adapt = adapt_,
                           .learning_rate = step.learning_rate,
                           .finite = step.finite,
                           .momentum = options_.momentum,
                           .weight_decay = options_.weight_decay,
                           .trust = options_.trust,
                           .inverse_scale = step.inverse_scale});
    follow(params_, step);
  }
  std::vector<std::pair<std::string, Tensor>> state() const override { return {{"momentum", buffer_}}; }

 private:
  const Params& params_;
  OptimizerOptions options_;
  Tensor buffer_, offsets_, adapt_;
};

class AdamW final : public Optimizer {
 public:
  AdamW(const Params& params, const OptimizerOptions& options)
      : params_(params),
        options_(options),
        first_(Tensor::full(params.device(), params.master().shape(), 0.f)),
        second_(Tensor::full(params.device(), params.master().shape(), 0.f)),
        step_(Tensor::from(params.device(), {1}, std::vector<int64_t>{0})) {}

  void step(const OptimizerStep& step) override {
    backend(first_).adamw({.grad = params_.grad(),
                           .param = params_.master(),
                           .first = first_,
                           .second = second_,
                           .step = step_,
                           .learning_rate = step.learning_rate,
                           .finite = step.finite,
                           .beta1 = options_.beta1,
                           .beta2 = options_.beta2,
                           .eps = options_.eps,
                           .weight_decay = options_.weight_decay,
                           .inverse_scale = step.inverse_scale});
    follow(params_, step);
  }
  std::vector<std::pair<std::string, Tensor>> state() const override {
    return {{"first_moment", first_}, {"second_moment", second_}, {"adamw_step", step_}};
  }

 private:
  const Params& params_;
  OptimizerOptions options_;
  Tensor first_, second_, step_;
};

}  // namespace

std::unique_ptr<Optimizer> Optimizer::make(const Params& params, const OptimizerOptions& options) {
  if (options.kind == "sgd") return std::make_unique<Sgd>(params, options);
  if (options.kind == "lars") return std::make_unique<Lars>(params, options);
  if (options.kind == "adamw") return std::make_unique<AdamW>(params, options);
  throw UsageError(cat("optimizer '{}' is unknown; use sgd, lars or adamw", options.kind));
}

double learning_rate(const ScheduleOptions& o, double epoch) {
  if (o.per_epoch) epoch = std::floor(epoch);
  if (epoch < o.warmup_epochs) return o.base_lr * (o.warmup_start + (1 - o.warmup_start) * epoch / o.warmup_epochs);
  if (o.kind == "constant") return o.base_lr;
  if (o.kind == "cosine") {
    const double span = std::max(1e-12, o.epochs - o.warmup_epochs);
    const double t = std::min(1.0, (epoch - o.warmup_epochs) / span);
    return o.final_lr + (o.base_lr - o.final_lr) * 0.5 * (1 + std::cos(std::numbers::pi * t));
  }
  if (o.kind == "step") {
    double lr = o.base_lr;
    for (double milestone : o.milestones)
      if (epoch >= milestone) lr *= o.decay;
    return lr;
  }
  throw UsageError(cat("schedule '{}' is unknown; use cosine, step or constant", o.kind));
}

}  // namespace csml
