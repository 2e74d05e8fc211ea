#include "tests/simt/simt_backend.h"

#include <cstdlib>
#include <cstring>

namespace csml::test {

namespace {

struct Recording {
  explicit Recording(cuda::Context& c) : context(c) { context.set_recording(true); }
  ~Recording() { context.set_recording(false); }
  cuda::Context& context;
};

/// Like a captured graph: the same launches again, while scratch memory must not grow.
class TapeReplay final : public Replay {
 public:
  TapeReplay(cuda::Context& context, std::vector<std::function<void()>> calls)
      : context_(context), calls_(std::move(calls)) {}
  void run() override {
    const Recording recording(context_);
    for (const auto& call : calls_) call();
  }
  int64_t calls() const override { return static_cast<int64_t>(calls_.size()); }

 private:
  cuda::Context& context_;
  std::vector<std::function<void()>> calls_;
};

}  // namespace

// Two multiprocessors of capability 9.0: few blocks, so that loops over the grid go round more than once.
SimtBackend::SimtBackend() : context_(*this, &failure_, nullptr, 2, 90) {}

void* SimtBackend::allocate(size_t bytes) {
  constexpr size_t kAlignment = 256;  // cudaMalloc's
  void* data = nullptr;
  CHECK(posix_memalign(&data, kAlignment, bytes) == 0, "out of memory: {:.1f} MiB asked", bytes / 1048576.0);
  return data;
}

void SimtBackend::release(void* data) { std::free(data); }

void SimtBackend::upload(void* device, const void* host, size_t bytes) {
  if (bytes) std::memcpy(device, host, bytes);
}

void SimtBackend::download(void* host, const void* device, size_t bytes) {
  context_.check_failure();
  if (bytes) std::memcpy(host, device, bytes);
}

std::unique_ptr<Replay> SimtBackend::record(const std::function<void()>& work) {
  CHECK(!tape_, "a recording is already under way");
  const Recording recording(context_);
  Tape tape;
  tape_ = &tape;
  try {
    work();
  } catch (...) {
    tape_ = nullptr;
    throw;
  }
  tape_ = nullptr;
  return std::make_unique<TapeReplay>(context_, std::move(tape));
}

}  // namespace csml::test
