// Update: what follows a loss in a training step of one network: its gradients, the optimizer, the running statistics.
// For loops of one's own in one process; csml/method and csml/evaluation/finetune.cpp do more and do it themselves.
#pragma once

#include <memory>

#include "engine/layers.h"
#include "engine/optim.h"

namespace csml {

class Update {
 public:
  /// statistics_momentum: share that the running statistics keep in a step (0.9 is PyTorch's momentum of 0.1).
  /// Throws UsageError for an unknown kind of optimizer. `params` must outlive this and be trainable.
  Update(const Params& params, const OptimizerOptions& options, float statistics_momentum = 0.9f);

  /// Of the steps from now on. Between steps: it copies to the device.
  void set_learning_rate(double rate);
  /// How the network is to be run in a step, once: groups as in Forward. Its batch statistics go to operator().
  Forward forward(int groups = 1) const {
    return {.training = true, .groups = groups, .span = {}, .statistics = statistics_};
  }
  /// Back-propagates from the scalar `loss`, and where every gradient is finite steps the optimizer and
  ///   running <- statistics_momentum * running + (1 - statistics_momentum) * batch statistics.
  /// Else nothing changes. Recordable (engine/step.h).
  void operator()(const Var& loss);
  /// i32 [1], on the device: whether the last step had a finite gradient.
  const Tensor& finite() const { return finite_; }

 private:
  const Params& params_;
  std::unique_ptr<Optimizer> optimizer_;
  Tensor rate_, statistics_, statistics_momentum_, finite_;
};

}  // namespace csml
