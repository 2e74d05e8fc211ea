#include "engine/watchdog.h"

#include <unistd.h>

#include <algorithm>

#include "engine/comm.h"

namespace csml {

namespace {

constexpr size_t kPast = 4;  // calls that a report names

[[noreturn]] void print_and_exit(const std::string& line) {
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, line.data(), line.size());
  ::_exit(kExitLost);  // no destructors: the main thread is inside the library that does not answer
}

}  // namespace

Watchdog::Watchdog(int rank, int size, double timeout_seconds)
    : rank_(rank), size_(size), timeout_seconds_(timeout_seconds) {
  if (timeout_seconds_ > 0) thread_ = std::thread([this] { watch(); });
}

Watchdog::~Watchdog() {
  {
    const std::lock_guard lock(mutex_);
    quit_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void Watchdog::phase(const std::string& text) {
  const std::lock_guard lock(mutex_);
  phase_ = text;
}

void Watchdog::enter(const char* name, size_t bytes) {
  const std::lock_guard lock(mutex_);
  now_ = {name, bytes, ++calls_};
  since_ = Clock::now();
  inside_ = true;
}

void Watchdog::leave() {
  const std::lock_guard lock(mutex_);
  inside_ = false;
  past_.push_front(now_);
  if (past_.size() > kPast) past_.pop_back();
}

void Watchdog::fail(const std::string& reason) {
  const std::lock_guard lock(mutex_);
  print_and_exit(report_locked(cat("failed: {}", reason)));
}

std::string Watchdog::text_of(const Call& call) {
  const double bytes = static_cast<double>(call.bytes);
  const std::string amount = call.bytes == 0             ? ""
                             : call.bytes < 10240        ? cat(" of {} bytes", call.bytes)
                             : call.bytes < 10 * 1048576 ? cat(" of {:.1f} KiB", bytes / 1024)
                                                         : cat(" of {:.1f} MiB", bytes / 1048576);
  return cat("{}{} (call {})", call.name, amount, call.number);
}

std::string Watchdog::report(double seconds) const {
  const std::lock_guard lock(mutex_);
  return report_locked(cat("has waited {:.0f} s for the other processes", seconds));
}

std::string Watchdog::report_locked(const std::string& what) const {
  std::string before;
  for (const Call& call : past_) before += (before.empty() ? "" : ", ") + text_of(call);
  return cat(
      "csml: [rank {}] {} {} in {}; before it: {}; one of the {} processes hangs or is lost (the one that does "
      "not say this, or whose calls differ); ending with exit code {}\n",
      rank_, text_of(now_), what, phase_, before.empty() ? "nothing" : before, size_, kExitLost);
}

void Watchdog::watch() {
  using seconds = std::chrono::duration<double>;
  const seconds period(std::min(1.0, timeout_seconds_ / 4));
  std::unique_lock lock(mutex_);
  for (Clock::time_point before = Clock::now(); !wake_.wait_for(lock, period, [this] { return quit_; });) {
    // Time in which this process itself was stopped is not the others' fault.
    const Clock::time_point now = Clock::now();
    if (now - before > 2 * period) since_ += std::chrono::duration_cast<Clock::duration>(now - before - period);
    before = now;
    const double waited = seconds(now - since_).count();
    if (inside_ && waited > timeout_seconds_)
      print_and_exit(report_locked(cat("has waited {:.0f} s for the other processes", waited)));
  }
}

}  // namespace csml
