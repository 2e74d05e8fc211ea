// StepsInFlight: starts a run's steps and acts, one step later on a GPU, on what became of them: votes on stopping, and
// gradients that are not finite, which are counted, captured and, where too many come in a row, end the run.
#pragma once

#include <array>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "csml/training/run_log.h"
#include "csml/training/run_state.h"
#include "engine/step.h"

namespace csml {

/// Folder of a run that holds the steps captured for csml replay: checkpoints of the state they started from.
inline constexpr const char* kCaptures = "captures";

class StepsInFlight {
 public:
  struct Options {
    std::filesystem::path out{};  // run folder
    /// Steps that the device may have before the host has seen what became of the first: 1 or 2, with the same result.
    /// With 2 the device has the next one before the host knows about the one before, and never waits. 0: 2 on a GPU,
    /// and 1 on the CPU, where nothing would be gained.
    int most = 0;
    std::function<void(const std::string&)> phase{};  // told what the host waits for; may be empty
  };
  /// All of them must outlive this; `state` is moved on by the steps.
  StepsInFlight(Device& device, Comm& comm, RunState& state, RunLog& log, Options options);

  /// Starts the step at state.at with the images of `batch`, and moves on. `stop`: this process's vote. Throws Error
  /// where train.max_non_finite_steps in a row had no finite gradient.
  void start(const Batch& batch, bool stop);
  /// Waits for all that were started and acts on what became of them. Throws as start() does.
  void settle_all();
  /// Steps that were started and of which the host does not know yet what became.
  int unsettled() const { return unsettled_; }
  /// Whether a process voted for stopping, in a step that was settled.
  bool stop_seen() const { return stop_seen_; }
  /// Whether every step that was settled since the last call had a finite gradient.
  bool take_all_finite();
  /// The last settled steps in a row whose gradient was not finite.
  int64_t non_finite() const { return non_finite_; }

 private:
  /// A step that was started, until the host has seen what became of it.
  struct Started {
    Position before;
    std::vector<int64_t> samples, neighbors;
    std::unique_ptr<Readback> finite, stop;
  };
  void recorded_step();
  void read_signals(Started& step);
  void settle();
  void alarm(const Started& step);
  void capture(const Started& step);

  Device& device_;
  Comm& comm_;
  RunState& state_;
  RunLog& log_;
  const Options options_;
  Tensor stop_vote_;  // i32 [1]
  Step step_;
  std::array<Started, 2> started_;  // step n: n mod 2
  int unsettled_ = 0, most_;
  int non_finite_ = 0;      // steps in a row up to now
  bool all_finite_ = true;  // steps since take_all_finite()
  bool stop_seen_ = false;
};

}  // namespace csml
