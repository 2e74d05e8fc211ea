// Runs one step of a run again, from a checkpoint before it, and says where its first NaN or infinity comes from.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "csml/training/run_state.h"

namespace csml {

struct StepReplay {
  Position before;               // of the step
  int64_t repeated = 0;          // steps from the checkpoint to there
  bool finite = true;            // its gradient
  std::string first_non_finite;  // "the result of op 'conv2d' (shape …) …", in the order of the step; empty: none
  nlohmann::json measured;       // what the step's line in metrics.jsonl says of its loss
  std::vector<int64_t> samples, neighbors;  // images used; neighbors -1 without
};

/// Step `step` (counted from 1, as in metrics.jsonl), by this process alone; the checkpoint must be of fewer steps. The
/// steps between are done again, neighbour searches included. Equal bits on the machine and with the number of
/// processes of the run, equal to rounding elsewhere. Throws Error.
StepReplay replay_step(Device& device, const Config& config, const Checkpoint& checkpoint, int64_t step,
                       const std::function<void(int64_t done)>& progress = {});

}  // namespace csml
