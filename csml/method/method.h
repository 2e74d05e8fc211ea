// Method: what a self-supervised method is to the training loop. csml/method/plan.h and csml/method/base.h say what each one is.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "csml/method/encoder.h"
#include "csml/method/plan.h"
#include "csml/method/views.h"
#include "engine/comm.h"

namespace csml {

class Method {
 public:
  virtual ~Method() = default;

  /// The views every sample needs, in the order load() gets them.
  virtual std::vector<ViewSpec> views() const = 0;
  /// Uploads what this step needs: images, permutations, boxes, weights, learning rate. Outside the recorded step.
  virtual void load(const Batch& batch, const StepInfo& info) = 0;
  /// One whole step: forward, backward, commit. Recordable: reads only what load() uploaded.
  virtual void step() = 0;
  /// i32 [1], on the device: 1, and 0 from a step without a finite gradient on. That step and those after it change
  /// nothing until go_on(), so that the host can look at the flag late, when the next step is already on its way. An
  /// fp16 overflow that lowers the loss scale counts as finite.
  virtual Tensor finite() const = 0;
  /// Sets finite() to 1.
  virtual void go_on() = 0;
  /// Between steps, but not at each: starts to read the means over the `steps` steps since the last call, for the log:
  /// loss, loss_terms, positive_similarity, … The device copies them behind the steps so far; the host waits for
  /// nothing.
  virtual void begin_measure(int64_t steps) = 0;
  /// What the last begin_measure() has found. Waits for it and for no step that was started after it.
  virtual nlohmann::json end_measure() = 0;
  nlohmann::json measure(int64_t steps) {
    begin_measure(steps);
    return end_measure();
  }

  /// The encoder that is trained, and the one whose features judge the data (the momentum encoder where there is one).
  virtual Encoder& query_encoder() = 0;
  virtual Encoder& key_encoder() = 0;
  virtual bool needs_neighbors() const = 0;

  /// Everything a resumed run needs beside the encoders, by name.
  virtual std::vector<std::pair<std::string, Tensor>> state() const = 0;
};

/// A base by name (csml/method/base.h), or "csml" over one, for one of the processes of `comm`. Throws UsageError for another
/// name.
std::unique_ptr<Method> make_method(Device& device, const Config& config, int in_channels, Comm& comm = Comm::alone());

}  // namespace csml
