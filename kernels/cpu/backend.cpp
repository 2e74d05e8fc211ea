#include "kernels/cpu/backend.h"

#include <cstdlib>
#include <cstring>

namespace csml {

namespace {

class TapeReplay final : public Replay {
 public:
  explicit TapeReplay(std::vector<std::function<void()>> calls) : calls_(std::move(calls)) {}
  void run() override {
    for (const auto& call : calls_) call();
  }
  int64_t calls() const override { return static_cast<int64_t>(calls_.size()); }

 private:
  std::vector<std::function<void()>> calls_;
};

}  // namespace

void* CpuBackend::allocate(size_t bytes) {
  constexpr size_t kAlignment = 64;  // one cache line, one AVX-512 register
  void* data = std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
  CHECK(data || bytes == 0, "out of memory: {:.1f} MiB asked; use a smaller batch", bytes / 1048576.0);
  if (log_) log_->allocated(data, bytes);
  return data;
}

void CpuBackend::release(void* data) { std::free(data); }

void CpuBackend::upload(void* device, const void* host, size_t bytes) {
  if (bytes) std::memcpy(device, host, bytes);
}

void CpuBackend::download(void* host, const void* device, size_t bytes) {
  if (bytes) std::memcpy(host, device, bytes);
}

std::unique_ptr<Replay> CpuBackend::record(const std::function<void()>& work) {
  CHECK(!tape_, "a recording is already under way");
  Tape tape;
  tape_ = &tape;
  try {
    work();
  } catch (...) {
    tape_ = nullptr;
    throw;
  }
  tape_ = nullptr;
  return std::make_unique<TapeReplay>(std::move(tape));
}

void CpuBackend::host_call(const std::function<void()>& call) {
  call();
  if (tape_) tape_->push_back(call);
}

}  // namespace csml
