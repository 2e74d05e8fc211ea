// Executor of the SIMT model on the host: the threads of a block are fibers, which run in random order from barrier to
// barrier; blocks run one after another, in random order. A kernel that breaks the model's rules ends its launch with
// a csml::Error that names kernel, block and thread:
//   - a barrier or warp operation that not every thread of the block or warp reaches (there and nowhere else)
//   - shared memory: outside an array, read before written, touched by two threads without a barrier between where one
//     writes, asynchronous copies read before their wait
//   - vector accesses that are not aligned
// Bounds of global memory are AddressSanitizer's. The seed is CSML_SIMT_SEED (1 if absent); every launch draws anew
// from it, so that a result which depends on the order differs between two runs of a call.
#pragma once

#include <functional>
#include <memory>
#include <source_location>
#include <string>
#include <vector>

#include "kernels/cuda/context.h"
#include "kernels/cuda/values.h"
#include "tests/simt/fiber.h"
#include "tests/simt/launch_log.h"
#include "tests/simt/shared_memory.h"

namespace csml::simt {

using cuda::Index;
using cuda::kWarp;
using cuda::Launch;
using Where = std::source_location;

/// One asynchronous copy that was not waited for yet.
struct PendingCopy {
  SharedArray to;
  int64_t i = 0;
  int count = 0;               // elements
  const void* from = nullptr;  // null: zeros
  int group = 0;
};

/// One thread of the running block.
struct Thread {
  int id = 0;
  Fiber* fiber = nullptr;
  bool done = false;
  const char* what = nullptr;  // what it waits for; null: nothing
  Where where{};
  const void* in = nullptr;  // operands of a warp operation
  void* out = nullptr;
  std::vector<PendingCopy> copies;
  int groups = 0;  // committed
};

class Executor {
 public:
  static Executor& get();

  /// Runs a kernel's body once for every thread of the launch.
  void run(const Launch& how, const std::function<void()>& body);
  LaunchLog& launches() { return launches_; }
  void set_seed(uint64_t seed) { random_ = seed * 0x9E3779B97F4A7C15u + 1; }

  // ---- for kernels, through tests/simt/device.h ---------------------------------------------------------------------
  int thread() const { return self_->id; }
  Index block() const { return block_; }
  const Launch& launch() const { return *launch_; }
  SharedMemory& shared() { return shared_; }
  SharedMemory::Who who(int thread) const { return {thread, warps_[static_cast<size_t>(thread / kWarp)].barriers}; }

  void sync_block(Where where);
  /// A barrier of the warp that orders memory.
  void sync_warp(Where where);
  /// Waits for the whole warp; then combine(in, out) runs once, with the operands of all lanes.
  using Combine = void (*)(const void* const* in, void* const* out);
  void warp_operation(const char* what, Where where, const void* in, void* out, Combine combine);

  /// Checks and notes an access of a thread; returns where the bytes are.
  std::byte* access(const SharedArray& a, int64_t i, int count, Access kind, int thread) {
    const std::string wrong = shared_.access(a, i, count, kind, who(thread));
    if (!wrong.empty()) fail(wrong);
    return shared_.data(a, i);
  }
  std::byte* access(const SharedArray& a, int64_t i, int count, Access kind) {
    return access(a, i, count, kind, self_->id);
  }
  void copy_async(const SharedArray& to, int64_t i, int count, const void* from);
  void copy_commit() { ++self_->groups; }
  void copy_wait(int pending);

  /// Ends the launch with an error that says where.
  [[noreturn]] void fail(const std::string& what) const;

 private:
  struct Warp {
    int arrived = 0;
    uint32_t barriers = 0;
    int first = 0;  // the lane that arrived first
  };

  Executor();
  void run_block();
  static void fiber_body();
  void wait(const char* what, Where where);
  [[noreturn]] void fail_stuck() const;
  std::string place() const;
  uint32_t draw(uint32_t n);  // uniform in [0, n)

  const Launch* launch_ = nullptr;
  const std::function<void()>* body_ = nullptr;
  Index block_{};
  LaunchLog launches_;
  uint64_t random_ = 0;
  SharedMemory shared_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<int> ready_;  // threads that can run
  int arrived_ = 0;         // at the block's barrier
  int ended_ = 0;
  Thread* self_ = nullptr;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> free_;
  std::exception_ptr error_;
};

}  // namespace csml::simt
