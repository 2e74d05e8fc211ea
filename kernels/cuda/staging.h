// Staging: copies between ordinary host memory and the card through page-locked memory. The caller's memory is free
// when an upload returns, and an upload does not wait for kernels that are queued before it:
//
//   few bytes   host -> slot, and slot -> destination on the caller's stream. A slot for each, many slots.
//   many bytes  host -> page-locked block -> block on the card on a stream of its own, which works beside the kernels;
//               block on the card -> destination on the caller's stream, where it takes what a copy within the card
//               takes (3 TB/s on an H100) instead of what one over PCIe takes (50 GB/s).
//
// So the images of the next step travel while the present one is computed, at the price of as much memory on the card.
#pragma once

#include <array>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/stream.h"

namespace csml::cuda {

class Staging {
 public:
  static constexpr size_t kSlotBytes = size_t{64} << 10, kBlockBytes = size_t{8} << 20;
  static constexpr size_t kSlots = 128, kHostBlocks = 8;
  static constexpr size_t kCardBlocks = 32;  // at most: 256 MiB

  /// Memory on the card for blocks, taken as they become needed; allocate throws Error where there is none.
  struct Memory {
    std::function<void*(size_t bytes)> allocate;
    std::function<void(void*)> release;
  };
  explicit Staging(Memory memory) : memory_(std::move(memory)) {}
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  /// Ordered on `stream`. The host waits only for the copies before it over PCIe, and where kSlots uploads or
  /// kCardBlocks blocks are queued on `stream` and not begun; with no memory on the card for a first block, many bytes
  /// wait for `stream`.
  void upload(cudaStream_t stream, void* device, const void* host, size_t bytes);
  /// Beside everything that is queued; done when it returns.
  void upload_now(void* device, const void* host, size_t bytes);
  /// Returns when the bytes are in `host`: everything on `stream` before it is then done.
  void download(cudaStream_t stream, void* host, const void* device, size_t bytes);

 private:
  struct HostBlock {
    explicit HostBlock(size_t bytes) : memory(bytes) {}
    Pinned memory;
    Event done;  // the last copy that uses the block
  };
  struct CardBlock {
    void* data = nullptr;
    Event empty;  // its content has reached its destination
  };

  /// The host's bytes into block after block; send(block, destination, bytes) starts what brings one to the card.
  template <class Send>
  void in_blocks(void* device, const void* host, size_t bytes, const Send& send);
  void send(cudaStream_t stream, const HostBlock& block, void* to, size_t size);
  /// Free for the host to write to.
  HostBlock& next_block();
  /// The one that has been used least recently, or a new one; null: there is none to be had.
  CardBlock* next_card_block();
  void upload_few(cudaStream_t stream, void* device, const void* host, size_t bytes);

  Memory memory_;
  Stream beside_;
  std::array<std::unique_ptr<HostBlock>, kHostBlocks> blocks_;  // made when first needed
  size_t at_ = 0;
  std::unique_ptr<Pinned> slots_;
  std::vector<Event> slot_done_;
  size_t slot_ = 0;
  std::deque<std::unique_ptr<CardBlock>> card_blocks_;  // least recently used first
  size_t most_card_blocks_ = kCardBlocks;
};

/// A few bytes of the card's, read by the host without waiting for what is queued after them.
class PinnedReadback final : public Readback {
 public:
  /// checked: called by wait() when the bytes are there; throws what kernels have reported.
  PinnedReadback(cudaStream_t stream, size_t bytes, std::function<void()> checked = {})
      : stream_(stream), bytes_(bytes), memory_(bytes), checked_(std::move(checked)) {}
  void start(const void* device) override;
  const void* wait() override;

 private:
  cudaStream_t stream_;
  size_t bytes_;
  Pinned memory_;
  Event done_;
  std::function<void()> checked_;
};

}  // namespace csml::cuda
