// What a test tells the stand-in for the CUDA runtime (tests/vendor/runtime.cpp). Device memory is host memory. Streams
// are queues of which nothing moves until the host waits or asks, and then one piece of a random stream at a time: of
// all the orders that the documentation allows, any can come.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>

namespace csml::test::runtime {

/// Of the order.
void seed(uint64_t value);
/// A kernel: `work` runs when the stream gets there.
void kernel(cudaStream_t stream, std::function<void()> work);
/// A kernel that does not end before release() is called. A host that waits for it gets cudaErrorLaunchTimeout.
void endless_kernel(cudaStream_t stream);
void release();
/// Does everything that can be done.
void advance();
/// Bytes that copies from host to device have moved so far.
size_t bytes_uploaded();

}  // namespace csml::test::runtime
