// StopSignals: SIGTERM, SIGINT, SIGUSR1 and SIGHUP ask a run to stop; a second one, or too long a wait, ends the process at
// once.
#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>

namespace csml {

/// One is alive at a time. A signal less than a second after the first counts as the same one: launchers and terminals
/// deliver some twice. SIGHUP stays ignored where it was (nohup). After a stop, a signal within a second of the
/// destructor does nothing: the process is exiting.
class StopSignals {
 public:
  /// `seconds`: from a signal to the end of this object; past it the process prints what it was doing and exits with
  /// kExitLost. 0: no limit.
  StopSignals(int rank, int size, double seconds);
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

  const std::atomic<bool>& asked() const;
  /// What the process does from now on, for that line.
  void phase(const std::string& text);

 private:
  void watch();

  const std::string rank_;  // "[rank r] " of several processes
  const double seconds_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::string phase_ = "the start";
  bool quit_ = false;
  std::thread thread_;  // last: it uses the rest
};

}  // namespace csml
