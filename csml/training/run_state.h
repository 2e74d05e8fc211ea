// RunState: everything that a run carries from step to step, and its way into checkpoints and back.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "csml/method/method.h"
#include "data/dataset.h"
#include "engine/checkpoint.h"
#include "engine/comm.h"

namespace csml {

/// Where a run stands: the next batch to train on.
struct Position {
  int64_t step = 0, epoch = 0, batch = 0;
};

/// The neighbour table of a checkpoint; null where it has none for so many images.
std::shared_ptr<NeighborTable> neighbor_table_of(const Checkpoint& checkpoint, int64_t images);

struct RunState {
  const Config& config;
  const Dataset& data;
  Method& method;
  std::string fingerprint{};  // of the data
  Position at{};
  std::shared_ptr<const NeighborTable> neighbors{};
  double purity = -1, churn = -1;  // of the neighbours; -1: unknown
  int64_t skipped = 0;             // steps that changed nothing, their gradient not being finite
  bool evaluation_due = false;     // the k-NN of this position was interrupted
  int64_t saved = -1;              // step of the newest checkpoint, written or being written; -1: none

  /// Where the learning rate and other schedules stand at the next step.
  StepInfo step_info() const {
    const int64_t steps_per_epoch = data.size() / config.train.batch_size;
    return {.step = at.step,
            .epoch = at.epoch,
            .progress =
                static_cast<double>(at.epoch) + static_cast<double>(at.batch) / static_cast<double>(steps_per_epoch)};
  }
  /// At the start of every refresh_epochs-th epoch. Where the warm-up ends before the second of these, at its end too:
  /// the first table is the untrained encoder's, and no cross term should follow it.
  bool refresh_due() const {
    const MethodConfig& m = config.method;
    const bool first_trained = at.epoch == m.warmup_epochs && m.warmup_epochs < m.refresh_epochs;
    return method.needs_neighbors() && at.batch == 0 && (at.epoch % m.refresh_epochs == 0 || first_trained);
  }

  RunState(const Config& c, const Dataset& d, Method& m)
      : config(c), data(d), method(m), fingerprint(cat("{:016x}", d.fingerprint())) {}

  /// Takes the state of a checkpoint. Throws Error where that is of other data or of another configuration.
  void restore(const Checkpoint& checkpoint);
  /// Rank 0's state on every process: only rank 0 needs to see the run's folder.
  void share(Device& device, Comm& comm);
  /// Both encoders start from torchvision-named weights; the heads too where the file has them.
  void start_from(const std::filesystem::path& weights);
};

/// A copy of a run's state in host memory, which can be written while the run goes on. take() makes plain copies into
/// memory that the first one allocates.
class StateCopy {
 public:
  /// `user`: what the manifest says besides.
  void take(const RunState& state, const nlohmann::json& user = nlohmann::json::object());
  /// What a checkpoint of the copy holds, under torchvision's names and layouts.
  struct Content {
    CheckpointContent checkpoint;      // its arrays point into this Content and into the copy
    std::vector<NamedArray> encoders;  // in torchvision's layout
  };
  Content content() const;
  int64_t step() const { return at_.step; }

 private:
  struct Part {
    const Params* params;  // of an encoder that lives as long as the run
    std::string prefix;
    std::vector<float> parameters, statistics;
  };

  Position at_;
  std::vector<Part> parts_;
  std::vector<NamedArray> state_;
  std::shared_ptr<const NeighborTable> neighbors_;
  nlohmann::json user_;
  bool milestone_ = false;
};

}  // namespace csml
