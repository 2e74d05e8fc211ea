#include "kernels/cuda/staging.h"

#include <algorithm>
#include <cstring>

#include "kernels/cuda/check.h"

namespace csml::cuda {

Staging::~Staging() {
  for (const Block& block : blocks_) {
    if (block.done) cudaEventDestroy(static_cast<cudaEvent_t>(block.done));
    if (block.host) cudaFreeHost(block.host);
  }
}

Staging::Block& Staging::next() {
  Block& block = blocks_[at_];
  at_ = (at_ + 1) % blocks_.size();
  if (!block.host) {
    cudaEvent_t done = nullptr;
    CUDA_CHECK(cudaEventCreateWithFlags(&done, cudaEventDisableTiming));
    block.done = done;
    CUDA_CHECK(cudaMallocHost(&block.host, kBlockBytes));
  }
  CUDA_CHECK(cudaEventSynchronize(static_cast<cudaEvent_t>(block.done)));
  return block;
}

void Staging::upload(void* stream, void* device, const void* host, size_t bytes) {
  auto* to = static_cast<std::byte*>(device);
  const auto* from = static_cast<const std::byte*>(host);
  for (size_t begin = 0; begin < bytes; begin += kBlockBytes) {
    const size_t size = std::min(kBlockBytes, bytes - begin);
    const Block& block = next();
    std::memcpy(block.host, from + begin, size);
    CUDA_CHECK(
        cudaMemcpyAsync(to + begin, block.host, size, cudaMemcpyHostToDevice, static_cast<cudaStream_t>(stream)));
    CUDA_CHECK(cudaEventRecord(static_cast<cudaEvent_t>(block.done), static_cast<cudaStream_t>(stream)));
  }
}

void Staging::download(void* stream, void* host, const void* device, size_t bytes) {
  auto* to = static_cast<std::byte*>(host);
  const auto* from = static_cast<const std::byte*>(device);
  const Block* before = nullptr;  // its copy is under way while the next one is started
  size_t before_begin = 0, before_size = 0;
  const auto finish = [&] {
    if (!before) return;
    CUDA_CHECK(cudaEventSynchronize(static_cast<cudaEvent_t>(before->done)));
    std::memcpy(to + before_begin, before->host, before_size);
  };
  for (size_t begin = 0; begin < bytes; begin += kBlockBytes) {
    const size_t size = std::min(kBlockBytes, bytes - begin);
    const Block& block = next();
    CUDA_CHECK(
        cudaMemcpyAsync(block.host, from + begin, size, cudaMemcpyDeviceToHost, static_cast<cudaStream_t>(stream)));
    CUDA_CHECK(cudaEventRecord(static_cast<cudaEvent_t>(block.done), static_cast<cudaStream_t>(stream)));
    finish();
    before = &block, before_begin = begin, before_size = size;
  }
  finish();
}

}  // namespace csml::cuda
