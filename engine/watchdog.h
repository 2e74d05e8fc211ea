// Watchdog: a thread that ends this process when a collective waits too long for the other processes.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <string>
#include <thread>

namespace csml {

/// Knows which collective this process is in, since when, and the last ones before it. The process that is lost says
/// nothing; each of the others prints one line:
///   csml: [rank 1] all_reduce_mean of 8.0 MiB (call 317) has waited 600 s for the other processes in step 42; …
/// and exits with kExitLost at once, without asking MPI: a launcher that sees one process fail ends the others.
class Watchdog {
 public:
  /// timeout_seconds = 0: never.
  Watchdog(int rank, int size, double timeout_seconds);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  void phase(const std::string& text);
  /// A call by name that moves so many bytes; enter() and leave() come in pairs.
  void enter(const char* name, size_t bytes);
  void leave();
  /// A collective failed: prints the line with this reason and exits.
  [[noreturn]] void fail(const std::string& reason);
  /// The line as it would be printed `seconds` after the present call began.
  std::string report(double seconds) const;

 private:
  using Clock = std::chrono::steady_clock;
  struct Call {
    const char* name = "";
    size_t bytes = 0;
    uint64_t number = 0;
  };

  static std::string text_of(const Call& call);
  std::string report_locked(const std::string& what) const;
  void watch();

  const int rank_, size_;
  const double timeout_seconds_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::string phase_ = "the start";
  Call now_;
  std::deque<Call> past_;  // newest first
  bool inside_ = false, quit_ = false;
  Clock::time_point since_;
  uint64_t calls_ = 0;
  std::thread thread_;
};

}  // namespace csml
