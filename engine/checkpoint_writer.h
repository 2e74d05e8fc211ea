// CheckpointWriter: a thread that writes checkpoints while training goes on,
// one at a time.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace csml {

/// Used from one thread. A write that fails is tried again after
/// `retry_seconds` until it succeeds or a newer one takes its place.
class CheckpointWriter {
 public:
  /// Writes one checkpoint and returns its folder; throws where it cannot.
  /// Called on the writer's thread.
  using Write = std::function<std::filesystem::path()>;
  /// What became of one try.
  struct Outcome {
    int64_t step = 0;
    std::filesystem::path folder{};  // empty: it failed
    std::string error{};
    double seconds = 0;
  };

  explicit CheckpointWriter(double retry_seconds);
  /// Waits for the write in progress; one that failed is not tried again.
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  /// Returns when nothing is being written, after how many seconds; a write
  /// that waits for its next try is given up. What the writes before read may
  /// be changed from then on.
  double acquire();
  /// After acquire(): starts to write.
  void start(int64_t step, Write write);
  /// Returns when the last write is done. Throws Error where it failed; it is
  /// then given up.
  void finish();
  /// Those since the last call, in order.
  std::vector<Outcome> outcomes();

 private:
  enum class State { idle, asked, writing, failed };  // failed: waits for its next try

  bool resting() const { return state_ == State::idle || state_ == State::failed; }
  void run();

  const std::chrono::duration<double> retry_;
  std::mutex mutex_;
  std::condition_variable changed_;
  State state_ = State::idle;
  bool quit_ = false;
  int64_t step_ = 0;
  Write write_;
  std::string error_;
  std::vector<Outcome> outcomes_;
  std::thread thread_;  // last: it uses the rest
};

}  // namespace csml
