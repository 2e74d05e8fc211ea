// Device: one backend and the caching arena its tensors live in.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/facts.h"

namespace csml {

class Device;
class Timeline;

/// Threads that the CPU's kernels use; 0: all cores. Results of our own kernels do not depend on it.
void set_compute_threads(int threads);
int compute_threads();

/// What the build and this machine have of CUDA.
CudaFacts cuda_facts();
/// Cards that this process sees; 0 where none can be used.
int usable_cards();

/// Bytes of an arena.
struct ArenaStats {
  size_t reserved = 0;  // taken from the backend and not given back
  size_t in_use = 0;    // held by tensors now
  size_t peak = 0;      // largest in_use so far
  size_t growths = 0;   // how often the backend was asked for memory
};

/// One allocation; gives itself back to its pool when the last tensor drops it.
class Storage {
 public:
  Storage(Device& device, std::shared_ptr<class Pool> pool, void* data, size_t capacity)
      : device_(device), pool_(std::move(pool)), data_(data), capacity_(capacity) {}
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  void* data() const { return data_; }
  Device& device() const { return device_; }

 private:
  Device& device_;
  std::shared_ptr<Pool> pool_;
  void* data_;
  size_t capacity_;
};

/// Blocks by size. The main pool serves everything; each recording owns one of its own, so that nothing else can reuse
/// memory which a replay will overwrite.
class Pool {
 public:
  explicit Pool(Backend& backend) : backend_(backend) {}
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  /// A free block of at least `bytes` (at most a quarter larger), or a new one.
  std::pair<void*, size_t> take(size_t bytes);
  void give(void* data, size_t capacity);
  /// Gives free blocks back to the backend.
  void trim();
  /// From here on take() may also take free blocks of `lender`, for good; until nullptr.
  void take_from(Pool* lender) { lender_ = lender; }
  const ArenaStats& stats() const { return stats_; }

 private:
  Backend& backend_;
  std::multimap<size_t, void*> free_;
  Pool* lender_ = nullptr;
  ArenaStats stats_;
};

/// A recorded step: its calls and the memory they work on.
class RecordedStep {
 public:
  void run() { replay_->run(); }
  int64_t calls() const { return replay_->calls(); }
  size_t reserved() const { return pool_->stats().reserved; }

 private:
  friend class Device;
  std::shared_ptr<Pool> pool_;
  std::unique_ptr<Replay> replay_;
};

/// Used from one thread. Tensors and recorded steps must be gone before their device is.
class Device {
 public:
  /// spec: "cpu", "cuda", "cuda:N" or "auto" (the best present). Throws where the device is not to be had.
  static std::unique_ptr<Device> open(const std::string& spec);
  explicit Device(std::unique_ptr<Backend> backend);

  Backend& backend() { return *backend_; }
  const char* name() const { return backend_->name(); }

  std::shared_ptr<Storage> allocate(size_t bytes);
  /// Who is told when pieces of steps run (engine/timeline.h; not owned); null: nobody.
  void set_timeline(Timeline* timeline) { timeline_ = timeline; }
  Timeline* timeline() const { return timeline_; }
  /// Main pool and all recordings together.
  ArenaStats stats() const;
  void trim() { main_->trim(); }

  /// Runs work once while recording it. Tensors made inside live in the recording's own pool, into which `reuse` moves
  /// free blocks of the main pool as they are needed: those of a run before, of which there is then no second set.
  std::shared_ptr<RecordedStep> record(const std::function<void()>& work, bool reuse = false);

 private:
  std::unique_ptr<Backend> backend_;
  std::shared_ptr<Pool> main_, current_;
  std::vector<std::weak_ptr<RecordedStep>> recordings_;
  Timeline* timeline_ = nullptr;
};

}  // namespace csml
