// Optimizers over flat buffers, and learning-rate schedules.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/params.h"

namespace csml {

struct OptimizerOptions {
  std::string kind = "sgd";  // sgd | lars | adamw
  float momentum = 0.9f;     // sgd, lars
  float weight_decay = 0;
  float trust = 1e-3f;                 // lars
  float beta1 = 0.9f, beta2 = 0.999f;  // adamw
  float eps = 1e-8f;                   // adamw
};

/// What one optimizer step is given.
struct OptimizerStep {
  Tensor learning_rate;             // f32 [1]
  Tensor finite{};                  // i32 [1], where it holds 0 nothing changes; empty: always
  Tensor inverse_scale{};           // f32 [1], multiplies the gradients; empty: 1
  const Params* average = nullptr;  // a momentum encoder: its parameters are the first of the trained network's
  Tensor average_momentum{};        // f32 [1]
};

/// Updates a network's master parameters from its gradients, and what follows from them: theta_k <- m theta_k +
/// (1 - m) theta of a momentum encoder, and the 16-bit copies of both. kernels/backend.h gives each formula (Sgd, Lars,
/// AdamW).
class Optimizer {
 public:
  virtual ~Optimizer() = default;
  virtual void step(const OptimizerStep& step) = 0;
  /// State by name ("momentum", …), to be saved and restored.
  virtual std::vector<std::pair<std::string, Tensor>> state() const = 0;
  /// Throws UsageError for an unknown kind.
  static std::unique_ptr<Optimizer> make(const Params& params, const OptimizerOptions& options);
};

struct ScheduleOptions {
  std::string kind = "cosine";  // cosine | step | constant
  double base_lr = 0.03;        // reached after warm-up
  double epochs = 200;
  double warmup_epochs = 0;        // linear from base_lr * warmup_start
  double warmup_start = 0;         // share of base_lr
  double final_lr = 0;             // cosine ends here
  std::vector<double> milestones;  // step: epochs at which lr is multiplied by decay
  double decay = 0.1;
  bool per_epoch = false;  // the whole epoch uses its first value (as MoCo's code does)
};

/// Learning rate at a (fractional) epoch.
///   cosine: final + (base - final) * (1 + cos(pi * (e - warmup) / (epochs - warmup))) / 2
double learning_rate(const ScheduleOptions& options, double epoch);

}  // namespace csml
