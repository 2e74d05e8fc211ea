#include "kernels/cuda/staging.h"

#include <algorithm>
#include <cstring>

namespace csml::cuda {

Staging::~Staging() {
  cudaStreamSynchronize(beside_.get());
  for (const auto& block : card_blocks_) memory_.release(block->data);
}

Staging::HostBlock& Staging::next_block() {
  std::unique_ptr<HostBlock>& block = blocks_[at_];
  at_ = (at_ + 1) % blocks_.size();
  if (!block) block = std::make_unique<HostBlock>(kBlockBytes);
  block->done.wait();
  return *block;
}

Staging::CardBlock* Staging::next_card_block() {
  const bool free = !card_blocks_.empty() && card_blocks_.front()->empty.happened();
  if (!free && card_blocks_.size() < most_card_blocks_) {
    try {
      auto block = std::make_unique<CardBlock>();
      block->data = memory_.allocate(kBlockBytes);
      card_blocks_.push_back(std::move(block));
      return card_blocks_.back().get();
    } catch (const Error&) { most_card_blocks_ = card_blocks_.size(); }  // no memory: those there are must do
  }
  if (card_blocks_.empty()) return nullptr;
  card_blocks_.push_back(std::move(card_blocks_.front()));
  card_blocks_.pop_front();
  return card_blocks_.back().get();
}

void Staging::upload(cudaStream_t stream, void* device, const void* host, size_t bytes) {
  if (bytes <= kSlotBytes) return upload_few(stream, device, host, bytes);
  auto* to = static_cast<std::byte*>(device);
  const auto* from = static_cast<const std::byte*>(host);
  for (size_t begin = 0; begin < bytes; begin += kBlockBytes) {
    const size_t size = std::min(kBlockBytes, bytes - begin);
    const HostBlock& block = next_block();
    std::memcpy(block.memory.get(), from + begin, size);
    const CardBlock* card = next_card_block();
    if (!card) {
      CUDA_CHECK(cudaMemcpyAsync(to + begin, block.memory.get(), size, cudaMemcpyHostToDevice, stream));
      block.done.record(stream);
      continue;
    }
    card->empty.hold(beside_.get());
    CUDA_CHECK(cudaMemcpyAsync(card->data, block.memory.get(), size, cudaMemcpyHostToDevice, beside_.get()));
    block.done.record(beside_.get());
    block.done.hold(stream);
    CUDA_CHECK(cudaMemcpyAsync(to + begin, card->data, size, cudaMemcpyDeviceToDevice, stream));
    card->empty.record(stream);
  }
}

void Staging::upload_few(cudaStream_t stream, void* device, const void* host, size_t bytes) {
  if (!slots_) {
    slots_ = std::make_unique<Pinned>(kSlots * kSlotBytes);
    slot_done_ = std::vector<Event>(kSlots);
  }
  const Event& done = slot_done_[slot_];
  std::byte* slot = slots_->get() + slot_ * kSlotBytes;
  slot_ = (slot_ + 1) % kSlots;
  done.wait();
  std::memcpy(slot, host, bytes);
  CUDA_CHECK(cudaMemcpyAsync(device, slot, bytes, cudaMemcpyHostToDevice, stream));
  done.record(stream);
}

void Staging::upload_now(void* device, const void* host, size_t bytes) {
  auto* to = static_cast<std::byte*>(device);
  const auto* from = static_cast<const std::byte*>(host);
  for (size_t begin = 0; begin < bytes; begin += kBlockBytes) {
    const size_t size = std::min(kBlockBytes, bytes - begin);
    const HostBlock& block = next_block();
    std::memcpy(block.memory.get(), from + begin, size);
    CUDA_CHECK(cudaMemcpyAsync(to + begin, block.memory.get(), size, cudaMemcpyHostToDevice, beside_.get()));
    block.done.record(beside_.get());
  }
  CUDA_CHECK(cudaStreamSynchronize(beside_.get()));
}

void Staging::download(cudaStream_t stream, void* host, const void* device, size_t bytes) {
  auto* to = static_cast<std::byte*>(host);
  const auto* from = static_cast<const std::byte*>(device);
  const HostBlock* before = nullptr;  // its copy is under way while the next one is started
  size_t before_begin = 0, before_size = 0;
  const auto finish = [&] {
    if (!before) return;
    before->done.wait();
    std::memcpy(to + before_begin, before->memory.get(), before_size);
  };
  for (size_t begin = 0; begin < bytes; begin += kBlockBytes) {
    const size_t size = std::min(kBlockBytes, bytes - begin);
    const HostBlock& block = next_block();
    CUDA_CHECK(cudaMemcpyAsync(block.memory.get(), from + begin, size, cudaMemcpyDeviceToHost, stream));
    block.done.record(stream);
    finish();
    before = &block, before_begin = begin, before_size = size;
  }
  finish();
}

void PinnedReadback::start(const void* device) {
  CUDA_CHECK(cudaMemcpyAsync(memory_.get(), device, bytes_, cudaMemcpyDeviceToHost, stream_));
  done_.record(stream_);
}

const void* PinnedReadback::wait() {
  done_.wait();
  return memory_.get();
}

}  // namespace csml::cuda
