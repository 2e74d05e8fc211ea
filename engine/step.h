// Step: a piece of work that is run many times: eagerly at first, then recorded once and replayed.
#pragma once

#include <functional>
#include <memory>

#include "engine/device.h"

namespace csml {

/// The work may read only tensors that persist between runs (inputs are uploaded into them beforehand) and must leave
/// its results in tensors it keeps. It must not read device data, allocate differently or branch differently from run
/// to run. CSML_EAGER=1 in the environment: never recorded.
class Step {
 public:
  /// Two eager runs: the first may choose plans and allocate, the second shows that nothing is left to grow, and the
  /// recording works in its memory.
  Step(Device& device, std::function<void()> work, int warmup_runs = 2);
  void run();
  /// Forget the recording, e.g. because a constant of the work changed; the next run() is eager.
  void reset();
  bool recorded() const { return static_cast<bool>(recorded_); }
  /// Device calls of one run; 0 before it is recorded.
  int64_t calls() const { return recorded_ ? recorded_->calls() : 0; }

 private:
  Device& device_;
  std::function<void()> work_;
  int warmup_runs_, runs_ = 0;
  bool eager_;
  std::shared_ptr<RecordedStep> recorded_;
};

}  // namespace csml
