// Pipeline: threads that fill numbered batches ahead of a consumer who takes them in order. Private to data/loader.cpp.
#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace csml {

/// B: a batch. Scratch: what one thread reuses. Work is cut into chunks of positions inside a batch; who fills which
/// chunk does not matter to the result. Without workers next() fills the batch itself. The constructor throws
/// std::system_error where a thread cannot be made.
template <class B, class Scratch>
class Pipeline {
 public:
  struct Work {
    std::function<int(int64_t number, B&)> prepare;                       // sizes the batch, returns its positions
    std::function<void(B&, int first, int last, Scratch& scratch)> fill;  // positions [first, last)
  };

  Pipeline(int workers, int depth, int chunk, Work work)
      : work_(std::move(work)), chunk_(chunk), slots_(static_cast<size_t>(std::max(depth, 1))) {
    try {
      for (int i = 0; i < workers; ++i) threads_.emplace_back([this] { run(); });
    } catch (...) {
      quit();  // those that were started are joined now
      throw;
    }
  }
  ~Pipeline() { quit(); }
  Pipeline(const Pipeline&) = delete;
  Pipeline& operator=(const Pipeline&) = delete;

  /// Drops what is under way; returns when no thread touches a batch any more.
  void stop() {
    std::unique_lock lock(mutex_);
    next_ = end_ = taken_;
    batch_ready_.wait(lock, [this] { return busy_ == 0; });
  }

  /// After stop(): batches [first, end).
  void start(int64_t first, int64_t end) {
    {
      const std::lock_guard lock(mutex_);
      next_ = taken_ = first;
      end_ = end;
      position_ = 0;
      failure_ = nullptr;
      if (!threads_.empty())
        for (int64_t n = first; n < std::min(end, first + depth()); ++n) prepare(n);
    }
    work_ready_.notify_all();
  }

  /// The next batch; its former memory goes back to work. False at the end. Throws what filling threw, from then on: of
  /// several failures the one at the lowest (batch, position), after the batches before it, however threads race.
  bool next(B& batch) {
    const auto begin = std::chrono::steady_clock::now();
    if (threads_.empty()) {
      if (failure_) std::rethrow_exception(failure_);
      if (taken_ >= end_) return false;
      try {
        const int count = work_.prepare(taken_, batch);
        work_.fill(batch, 0, count, scratch_);
      } catch (...) {
        failure_ = std::current_exception();
        throw;
      }
      ++taken_;
    } else {
      std::unique_lock lock(mutex_);
      if (taken_ >= end_) return false;
      Slot& slot = slot_of(taken_);
      // Chunks are handed out in order, and none after a failure: what comes before the failed one is done or in
      // flight, and may fail yet.
      batch_ready_.wait(lock, [&] { return slot.missing == 0 || (failure_ && busy_ == 0); });
      if (slot.missing > 0) std::rethrow_exception(failure_);
      std::swap(batch, slot.batch);
      ++taken_;
      if (taken_ + depth() - 1 < end_) prepare(taken_ + depth() - 1);
      lock.unlock();
      work_ready_.notify_all();
    }
    batch.wait_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    return true;
  }

 private:
  struct Slot {
    B batch;
    int count = 0, missing = 0;  // positions of the batch; those not filled yet
  };

  void quit() {
    {
      const std::lock_guard lock(mutex_);
      quit_ = true;
    }
    work_ready_.notify_all();
  }
  int64_t depth() const { return static_cast<int64_t>(slots_.size()); }
  Slot& slot_of(int64_t number) { return slots_[static_cast<size_t>(number % depth())]; }

  void prepare(int64_t number) {
    Slot& slot = slot_of(number);
    slot.count = slot.missing = work_.prepare(number, slot.batch);
  }

  void run() {
    Scratch scratch;
    std::unique_lock lock(mutex_);
    for (;;) {
      work_ready_.wait(lock, [this] { return quit_ || (!failure_ && next_ < end_ && next_ < taken_ + depth()); });
      if (quit_) return;
      const int64_t number = next_;
      Slot& slot = slot_of(number);
      const int first = position_, last = std::min(first + chunk_, slot.count);
      position_ = last;
      if (position_ == slot.count) {
        ++next_;
        position_ = 0;
      }
      ++busy_;
      lock.unlock();
      std::exception_ptr error;
      try {
        work_.fill(slot.batch, first, last, scratch);
      } catch (...) { error = std::current_exception(); }
      lock.lock();
      --busy_;
      if (!error) {
        slot.missing -= last - first;
      } else if (!failure_ || std::pair(number, first) < failed_at_) {
        failure_ = error;
        failed_at_ = {number, first};
      }
      if (slot.missing == 0 || busy_ == 0) batch_ready_.notify_all();
    }
  }

  Work work_;
  int chunk_;
  std::vector<Slot> slots_;
  Scratch scratch_;
  std::exception_ptr failure_;           // the one at the lowest place so far
  std::pair<int64_t, int> failed_at_{};  // its batch and the first position of its chunk
  std::mutex mutex_;
  std::condition_variable work_ready_, batch_ready_;
  int64_t next_ = 0, taken_ = 0, end_ = 0;  // batch being handed out, batches consumed, end of the run
  int position_ = 0;                        // first position of batch next_ not handed out
  int busy_ = 0;
  bool quit_ = false;
  std::vector<std::jthread> threads_;  // last: joined before anything else goes
};

}  // namespace csml
