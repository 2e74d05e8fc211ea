#include "csml/training/steps_in_flight.h"

#include <limits>
#include <utility>

namespace csml {

StepsInFlight::StepsInFlight(Device& device, Comm& comm, RunState& state, RunLog& log, Options options)
    : device_(device),
      comm_(comm),
      state_(state),
      log_(log),
      options_(std::move(options)),
      stop_vote_(Tensor::from(device, {1}, std::vector<int32_t>{0})),
      step_(
          device, [this] { recorded_step(); }, comm.recordable() ? 2 : std::numeric_limits<int>::max()),
      most_(options_.most > 0           ? options_.most
            : device.backend().stream() ? 2
                                        : 1) {
  CHECK(most_ <= 2, "{} steps in flight; at most 2", most_);
  for (Started& step : started_) {
    step.finite = device.backend().readback(sizeof(int32_t));
    step.stop = device.backend().readback(sizeof(int32_t));
  }
}

void StepsInFlight::recorded_step() {
  state_.method.step();
  if (comm_.size() > 1) comm_.all_reduce_max(stop_vote_);
}

void StepsInFlight::start(const Batch& batch, bool stop) {
  Position& at = state_.at;
  state_.method.load(batch, state_.step_info());
  stop_vote_.upload(std::vector<int32_t>{stop ? 1 : 0});
  step_.run();
  Started& started = started_[static_cast<size_t>(at.step % 2)];
  started.before = at;
  started.samples = batch.samples;
  started.neighbors = batch.neighbors;
  read_signals(started);
  ++unsettled_;
  ++at.step;
  ++at.batch;
  if (unsettled_ == most_) settle();
}

void StepsInFlight::read_signals(Started& step) {
  step.finite->start(ConstView(state_.method.finite()).data);
  step.stop->start(ConstView(stop_vote_).data);
}

/// Waits for the oldest step in flight and acts on what became of it.
void StepsInFlight::settle() {
  const Started& oldest = started_[static_cast<size_t>((state_.at.step - unsettled_) % 2)];
  if (unsettled_ > 1 && options_.phase) options_.phase(cat("the end of step {}", oldest.before.step + 1));
  const auto value = [](Readback& readback) { return *static_cast<const int32_t*>(readback.wait()); };
  const bool finite = value(*oldest.finite) == 1;
  stop_seen_ = stop_seen_ || value(*oldest.stop) != 0;
  --unsettled_;
  if (finite) {
    non_finite_ = 0;
    return;
  }
  alarm(oldest);
  state_.method.go_on();
  if (unsettled_ == 0) return;
  // The next step found the flag set and changed nothing: now it takes place. Its inputs are still there.
  step_.run();
  read_signals(started_[static_cast<size_t>((state_.at.step - 1) % 2)]);
}

void StepsInFlight::settle_all() {
  while (unsettled_ > 0) settle();
}

bool StepsInFlight::take_all_finite() { return std::exchange(all_finite_, true); }

/// A step without a finite gradient changed nothing and is counted, the first of a row is captured, and too many of
/// them end the run.
void StepsInFlight::alarm(const Started& step) {
  ++state_.skipped;
  all_finite_ = false;
  if (++non_finite_ == 1) {
    const std::string text = cat("step {}: the gradient is not finite; the step changes nothing", step.before.step + 1);
    log_warn(text);
    log_.event("non_finite", text);
    capture(step);
  }
  const int64_t first = step.before.step + 2 - non_finite_;
  if (non_finite_ >= state_.config.train.max_non_finite_steps)
    throw Error(
        cat("no finite gradient in {} steps from step {} on, nothing is learnt any more; lower schedule.lr, or see "
            "where it comes from: csml replay --run {} --step {}",
            non_finite_, first, options_.out.string(), first));
}

/// Keeps what a step that changed nothing started from: a checkpoint with the numbers of its images.
void StepsInFlight::capture(const Started& from) {
  namespace fs = std::filesystem;
  const nlohmann::json mine{{"samples", from.samples}, {"neighbors", from.neighbors}};
  const std::vector<std::string> all = gather_text(comm_, device_, mine.dump());
  if (comm_.rank() != 0) return;
  const fs::path folder = options_.out / kCaptures;
  try {
    std::error_code error;
    fs::create_directories(folder, error);
    if (std::distance(fs::directory_iterator(folder), fs::directory_iterator()) >= state_.config.train.captured_steps)
      return;
    nlohmann::json samples = nlohmann::json::array(), neighbors = nlohmann::json::array();
    for (const std::string& text : all) {
      const nlohmann::json part = nlohmann::json::parse(text);
      samples.insert(samples.end(), part["samples"].begin(), part["samples"].end());
      neighbors.insert(neighbors.end(), part["neighbors"].begin(), part["neighbors"].end());
    }
    const int64_t step = from.before.step + 1;
    RunState before = state_;
    before.at = from.before;
    StateCopy copy;
    copy.take(before, {{"capture",
                        {{"step", step},
                         {"seed", state_.config.train.seed},
                         {"processes", comm_.size()},
                         {"samples", samples},
                         {"neighbors", neighbors}}}});
    write_checkpoint(folder / cat("step_{:08d}", step), copy.content().checkpoint);
  } catch (const std::exception& e) { log_warn(cat("{}; the step is not captured", e.what())); }
}

}  // namespace csml
