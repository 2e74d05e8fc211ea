#include "csml/training/replay.h"

#include "csml/method/batch_layout.h"
#include "csml/training/refresh.h"
#include "engine/step.h"
#include "engine/var.h"

namespace csml {

namespace {

/// The first op of the step that makes something not finite; empty: none does.
std::string first_non_finite(Method& method) {
  const NanCheck check;
  try {
    method.step();
  } catch (const Error& e) { return e.what(); }
  return "";
}

bool is_finite(const Method& method) { return method.finite().host<int32_t>()[0] == 1; }

}  // namespace

StepReplay replay_step(Device& device, const Config& config, const Checkpoint& checkpoint, int64_t step,
                       const std::function<void(int64_t done)>& progress) {
  CHECK(step > checkpoint.step, "step {} is not after the checkpoint of step {}", step, checkpoint.step);
  Comm& comm = Comm::alone();
  const auto data = open_dataset(config.data.train);
  const auto method = make_method(device, config, data->channels(), comm);
  RunState state(config, *data, *method);
  state.restore(checkpoint);
  Loader loader(*data, method->views(), training_loader_options(config, comm, {}));
  Step repeat(device, [&] { method->step(); });
  StepReplay replay;
  for (;; ++state.at.epoch, state.at.batch = 0) {
    if (state.at.epoch >= config.train.epochs)
      throw Error(cat("step {} is after the run's end, which is at step {}", step, state.at.step));
    if (state.refresh_due()) find_neighbors(device, comm, state, {}, {});
    loader.start_epoch(state.at.epoch, state.at.batch, state.neighbors);
    for (Batch batch; loader.next(batch); ++state.at.step, ++state.at.batch) {
      method->load(batch, state.step_info());
      if (state.at.step + 1 < step) {
        repeat.run();
        if (!is_finite(*method)) method->go_on();  // as the run did
        ++replay.repeated;
        if (progress) progress(replay.repeated);
        continue;
      }
      if (replay.repeated > 0) method->measure(replay.repeated);  // its sums start anew
      replay.before = state.at;
      replay.samples = batch.samples;
      replay.neighbors = batch.neighbors;
      method->step();
      replay.finite = is_finite(*method);
      replay.measured = method->measure(1);
      if (!replay.finite) replay.first_non_finite = first_non_finite(*method);  // the step has changed nothing
      return replay;
    }
  }
}

}  // namespace csml
