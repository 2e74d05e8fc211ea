#include "engine/checkpoint_writer.h"

#include <utility>

#include "kernels/check.h"

namespace csml {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

}  // namespace

CheckpointWriter::CheckpointWriter(double retry_seconds) : retry_(retry_seconds), thread_([this] { run(); }) {}

CheckpointWriter::~CheckpointWriter() {
  {
    const std::lock_guard lock(mutex_);
    quit_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

double CheckpointWriter::acquire() {
  const Clock::time_point start = Clock::now();
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return resting(); });
  state_ = State::idle;
  changed_.notify_all();
  return seconds_since(start);
}

void CheckpointWriter::start(int64_t step, Write write) {
  const std::lock_guard lock(mutex_);
  CHECK(state_ == State::idle, "a checkpoint of step {} while that of step {} is being written", step, step_);
  step_ = step;
  write_ = std::move(write);
  state_ = State::asked;
  changed_.notify_all();
}

void CheckpointWriter::finish() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return resting(); });
  if (std::exchange(state_, State::idle) == State::idle) return;
  changed_.notify_all();
  throw Error(error_);
}

std::vector<CheckpointWriter::Outcome> CheckpointWriter::outcomes() {
  const std::lock_guard lock(mutex_);
  return std::exchange(outcomes_, {});
}

void CheckpointWriter::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return quit_ || state_ == State::asked; });
    if (state_ != State::asked) return;
    state_ = State::writing;
    const Write write = write_;
    Outcome outcome{.step = step_};
    lock.unlock();
    const Clock::time_point start = Clock::now();
    try {
      outcome.folder = write();
    } catch (const std::exception& e) { outcome.error = e.what(); }
    outcome.seconds = seconds_since(start);
    lock.lock();
    error_ = outcome.error;
    state_ = error_.empty() ? State::idle : State::failed;
    outcomes_.push_back(std::move(outcome));
    changed_.notify_all();
    if (state_ == State::idle) continue;
    changed_.wait_for(lock, retry_, [this] { return quit_ || state_ != State::failed; });
    if (quit_ && state_ == State::failed) return;
    if (state_ == State::failed) state_ = State::asked;
  }
}

}  // namespace csml
