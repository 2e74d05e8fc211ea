#include "apps/stop_signals.h"

#include <semaphore.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstring>

#include "engine/comm.h"
#include "kernels/check.h"

namespace csml {

namespace {

constexpr int kSignals[] = {SIGTERM, SIGINT, SIGUSR1, SIGHUP};
constexpr int64_t kSameMilliseconds = 1000;

// What the handler may touch.
std::atomic<bool> g_asked{false};
std::atomic<int64_t> g_first{0};  // milliseconds of the monotonic clock; 0: none came
std::atomic<bool> g_over{false};  // the object is gone, the process is about to exit
sem_t g_came;
static_assert(std::atomic<bool>::is_always_lock_free && std::atomic<int64_t>::is_always_lock_free);

int64_t milliseconds() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t{now.tv_sec} * 1000 + now.tv_nsec / 1'000'000;
}

void on_signal(int number) {
  const int code = errno;
  const int64_t time = milliseconds();
  int64_t first = 0;
  if (g_first.compare_exchange_strong(first, time)) {
    g_asked.store(true);
    ::sem_post(&g_came);
  } else if (time - first >= kSameMilliseconds) {
    constexpr char kLine[] = "csml: a second signal: ended at once, without a checkpoint of the last steps\n";
    if (!g_over.load()) { [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, kLine, sizeof kLine - 1); }
    ::signal(number, SIG_DFL);
    ::raise(number);  // takes effect when this handler returns
  }
  errno = code;
}

}  // namespace

StopSignals::StopSignals(int rank, int size, double seconds)
    : rank_(size > 1 ? cat("[rank {}] ", rank) : ""), seconds_(seconds) {
  CHECK(::sem_init(&g_came, 0, 0) == 0, "no semaphore: {}", std::strerror(errno));
  g_asked = false;
  g_first = 0;
  g_over = false;
  thread_ = std::thread([this] { watch(); });
  for (const int number : kSignals) {
    struct sigaction action {};
    action.sa_handler = on_signal;
    action.sa_flags = SA_RESTART;
    struct sigaction before {};
    ::sigaction(number, nullptr, &before);
    if (number == SIGHUP && before.sa_handler == SIG_IGN) continue;  // nohup
    ::sigaction(number, &action, nullptr);
  }
}

StopSignals::~StopSignals() {
  if (g_asked) {
    // The exit code of a stop is on its way: a signal that comes twice must not replace it. Should the exit hang, a later
    // one ends the process.
    g_over = true;
    g_first = milliseconds();
  } else {
    for (const int number : kSignals) {
      struct sigaction now {};
      ::sigaction(number, nullptr, &now);
      if (now.sa_handler == on_signal) ::signal(number, SIG_DFL);
    }
  }
  {
    const std::lock_guard lock(mutex_);
    quit_ = true;
  }
  wake_.notify_all();
  ::sem_post(&g_came);
  thread_.join();
}

const std::atomic<bool>& StopSignals::asked() const { return g_asked; }

void StopSignals::phase(const std::string& text) {
  const std::lock_guard lock(mutex_);
  phase_ = text;
}

void StopSignals::watch() {
  while (::sem_wait(&g_came) != 0) {}  // interrupted by a signal
  if (seconds_ <= 0) return;
  std::unique_lock lock(mutex_);
  if (wake_.wait_for(lock, std::chrono::duration<double>(seconds_), [this] { return quit_; })) return;
  const std::string line = cat(
      "csml: {}asked to stop {:.0f} s ago (train.stop_seconds) and still in {}: ended without a checkpoint of the last "
      "steps; the same command goes on from the one before\n",
      rank_, seconds_, phase_);
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, line.data(), line.size());
  ::_exit(kExitLost);  // no destructors: the main thread is where it does not answer
}

}  // namespace csml
