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

template <class Send>
void Staging::in_blocks(void* device, const void* host, size_t bytes, const Send& send) {
  for (size_t begin = 0; begin < bytes; begin += kBlockBytes) {
    const size_t size = std::min(kBlockBytes, bytes - begin);
    const HostBlock& block = next_block();
    std::memcpy(block.memory.get(), static_cast<const std::byte*>(host) + begin, size);
    send(block, static_cast<std::byte*>(device) + begin, size);
  }
}

void Staging::send(cudaStream_t stream, const HostBlock& block, void* to, size_t size) {
  CUDA_CHECK(cudaMemcpyAsync(to, block.memory.get(), size, cudaMemcpyHostToDevice, stream));
  block.done.record(stream);
}

void Staging::upload(cudaStream_t stream, void* device, const void* host, size_t bytes) {
  if (bytes <= kSlotBytes) return upload_few(stream, device, host, bytes);
  in_blocks(device, host, bytes, [&](const HostBlock& block, void* to, size_t size) {
    const CardBlock* card = next_card_block();
    if (!card) return send(stream, block, to, size);
    card->empty.hold(beside_.get());
    send(beside_.get(), block, card->data, size);
    block.done.hold(stream);
    CUDA_CHECK(cudaMemcpyAsync(to, card->data, size, cudaMemcpyDeviceToDevice, stream));
    card->empty.record(stream);
  });
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
  in_blocks(device, host, bytes,
            [&](const HostBlock& block, void* to, size_t size) { send(beside_.get(), block, to, size); });
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
  if (checked_) checked_();
  return memory_.get();
}

}  // namespace csml::cuda
