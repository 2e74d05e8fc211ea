// Context: what a family of CUDA kernels needs from the backend that calls it. The real backend and the test backend
// (tests/simt) each own one.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/backend.h"

namespace csml::cuda {

/// What a kernel found wrong in its data. The first one on a stream is kept, in memory that host and device both see.
struct Failure {
  enum What : int32_t { none = 0, gather_index = 1, label_range = 2, color_params = 3, window_corner = 4 };
  int32_t what = none;
  int32_t at = 0, value = 0, limit = 0;  // value[at] must lie in [0, limit)
};

#ifdef CSML_SIMT  // the host's copy of the kernels has symbols of its own: a test program holds both
inline namespace on_host {
#endif

class Context {
 public:
  /// memory: whose allocate() and release() scratch uses. failure: zeroed, visible to host and device. stream: the
  /// cudaStream_t that launch() uses. capability: 10 * major + minor.
  Context(Backend& memory, Failure* failure, void* stream, int multiprocessors, int capability)
      : memory_(memory),
        failure_(failure),
        stream_(stream),
        multiprocessors_(multiprocessors),
        capability_(capability) {}
  ~Context() {
    for (void* block : blocks_) memory_.release(block);
  }
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  void* stream() const { return stream_; }
  int multiprocessors() const { return multiprocessors_; }
  int capability() const { return capability_; }

  /// Device memory for one call, 64-byte aligned, content undefined; it belongs to the caller until the next scratch().
  /// Grows when needed and never shrinks; memory that a recording has seen stays allocated. Throws where it would have
  /// to grow while recording: run the work once before it is recorded.
  void* scratch(size_t bytes) {
    if (bytes > scratch_bytes_) {
      CHECK(!recording_, "scratch memory must grow from {} to {} bytes while recording; run the work once before",
            scratch_bytes_, bytes);
      const size_t grown = bytes + bytes / 2;
      blocks_.push_back(memory_.allocate(grown));
      scratch_bytes_ = grown;
    }
    return blocks_.empty() ? nullptr : blocks_.back();
  }
  template <class T>
  T* scratch(int64_t count) {
    return static_cast<T*>(scratch(static_cast<size_t>(count) * sizeof(T)));
  }
  void set_recording(bool recording) { recording_ = recording; }
  bool is_recording() const { return recording_; }

  /// Kernels started so far.
  int64_t launches() const { return launches_; }
  void count_launch() { ++launches_; }

  /// For kernels to report to (report() in launch.cuh).
  Failure* failure() const { return failure_; }
  /// Throws what a kernel reported, once. To be called where the stream is known to be idle.
  void check_failure() {
    const Failure found = *failure_;
    if (found.what == Failure::none) return;
    *failure_ = {};
    if (found.what == Failure::color_params)
      throw Error(cat("augment: image {} has jitter order {} (must be -1 or 0..{}) or a blur sigma outside [0, 1000]",
                      found.at, found.value, found.limit - 1));
    if (found.what == Failure::window_corner)
      throw Error(cat("gather_window: the window leaves the map: corner[{}, {}] = {} is outside [0, {})", found.at / 2,
                      found.at % 2, found.value, found.limit));
    throw Error(found.what == Failure::gather_index
                    ? cat("gather: index[{}] = {} is outside the {} rows of x", found.at, found.value, found.limit)
                    : cat("cross_entropy: label {} of row {} is outside [0, {})", found.value, found.at, found.limit));
  }

 private:
  Backend& memory_;
  Failure* failure_;
  void* stream_;
  int multiprocessors_, capability_;
  std::vector<void*> blocks_;
  size_t scratch_bytes_ = 0;
  bool recording_ = false;
  int64_t launches_ = 0;
};

#ifdef CSML_SIMT
}  // namespace on_host
#endif

}  // namespace csml::cuda
