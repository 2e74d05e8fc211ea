// Stream, Event, Pinned: owners of the CUDA runtime's things. All belong to the card that is current when they are
// made.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "kernels/cuda/check.h"

namespace csml::cuda {

class Stream {
 public:
  Stream() { CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

class Event {
 public:
  /// wait() gives the processor away instead of spinning: the loader's threads need it.
  Event() { CUDA_CHECK(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming | cudaEventBlockingSync)); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  /// Happens when everything that `stream` was told until now is done. An event that was never recorded has happened.
  void record(cudaStream_t stream) const { CUDA_CHECK(cudaEventRecord(event_, stream)); }
  /// What `stream` does from now on waits for it.
  void hold(cudaStream_t stream) const { CUDA_CHECK(cudaStreamWaitEvent(stream, event_, 0)); }
  /// The host waits for it.
  void wait() const { CUDA_CHECK(cudaEventSynchronize(event_)); }
  bool happened() const {
    const cudaError_t status = cudaEventQuery(event_);
    if (status == cudaErrorNotReady) {
      cudaGetLastError();  // clears it
      return false;
    }
    CUDA_CHECK(status);
    return true;
  }
  /// What `second` does from now on waits for what `first` was told until now; in a capture too.
  void order(cudaStream_t first, cudaStream_t second) const {
    record(first);
    hold(second);
  }

 private:
  cudaEvent_t event_ = nullptr;
};

/// Page-locked host memory, which the card copies from and to by itself.
class Pinned {
 public:
  explicit Pinned(size_t bytes) { CUDA_CHECK(cudaMallocHost(&data_, bytes)); }
  ~Pinned() { cudaFreeHost(data_); }
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;
  std::byte* get() const { return static_cast<std::byte*>(data_); }

 private:
  void* data_ = nullptr;
};

}  // namespace csml::cuda
