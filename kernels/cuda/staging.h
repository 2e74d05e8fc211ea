// Staging: copies between ordinary host memory and the card through a ring of pinned blocks, so that the caller's
// memory is free when an upload returns and the copy itself overlaps with what the host does next.
#pragma once

#include <array>
#include <cstddef>

namespace csml::cuda {

class Staging {
 public:
  Staging() = default;
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  /// Ordered on `stream` (a cudaStream_t). Waits only where all blocks are still on their way.
  void upload(void* stream, void* device, const void* host, size_t bytes);
  /// Returns when the bytes are in `host`: everything on `stream` before it is then done.
  void download(void* stream, void* host, const void* device, size_t bytes);

 private:
  static constexpr size_t kBlockBytes = size_t{8} << 20;
  struct Block {
    void* host = nullptr;
    void* done = nullptr;  // cudaEvent_t: the last copy that uses the block
  };

  Block& next();

  std::array<Block, 8> blocks_;  // allocated when first needed
  size_t at_ = 0;
};

}  // namespace csml::cuda
