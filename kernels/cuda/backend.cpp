#include "kernels/cuda/backend.h"

#include <algorithm>
#include <cstdlib>
#include <new>
#include <utility>

#include "kernels/cuda/check.h"
#include "kernels/cuda/conv.h"
#include "kernels/cuda/libraries.h"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/staging.h"
#include "kernels/cuda/stream.h"

namespace csml {

namespace {

constexpr int kOldestCapability = 80;

bool switched_on(const char* name) {
  const char* value = std::getenv(name);
  return value && std::string(value) == "1";
}

std::string version_text(int version) { return cat("{}.{}", version / 1000, version % 1000 / 10); }

double gib(size_t bytes) { return static_cast<double>(bytes) / (1 << 30); }

/// How many cards the driver shows; `why` says what is wrong where there is none.
int count_cards(std::string& why) {
  int cards = 0, driver = 0;
  const cudaError_t status = cudaGetDeviceCount(&cards);
  if (status == cudaSuccess && cards > 0) return cards;
  cudaGetLastError();  // clears it
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    why = "no NVIDIA driver is loaded on this machine; install one, or use --device cpu";
  } else if (status == cudaErrorInsufficientDriver) {
    why =
        cat("the NVIDIA driver is too old: it offers CUDA {}, csml was built with {}; update the driver, or use "
            "--device cpu",
            version_text(driver), version_text(CUDART_VERSION));
  } else if (status == cudaErrorNoDevice || status == cudaSuccess) {
    const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
    why = cat("the NVIDIA driver shows no card{}; use --device cpu",
              visible ? cat(" (CUDA_VISIBLE_DEVICES is '{}')", visible) : "");
  } else {
    why = cat("the NVIDIA driver does not start: {} ({}); see nvidia-smi, or use --device cpu",
              cudaGetErrorString(status), cudaGetErrorName(status));
  }
  return 0;
}

/// Memory that host and card both see, for what kernels find wrong in their data.
class SharedFailure {
 public:
  SharedFailure() {
    void* data = nullptr;
    CUDA_CHECK(cudaHostAlloc(&data, sizeof(cuda::Failure), cudaHostAllocMapped));
    failure_ = new (data) cuda::Failure;
  }
  ~SharedFailure() { cudaFreeHost(failure_); }
  SharedFailure(const SharedFailure&) = delete;
  SharedFailure& operator=(const SharedFailure&) = delete;
  cuda::Failure* get() const { return failure_; }

 private:
  cuda::Failure* failure_ = nullptr;
};

cudaDeviceProp properties_of(int card) {
  cudaDeviceProp properties{};
  CUDA_CHECK(cudaSetDevice(card));
  CUDA_CHECK(cudaGetDeviceProperties(&properties, card));
  return properties;
}

class GraphReplay final : public Replay {
 public:
  GraphReplay(cudaGraph_t graph, cudaStream_t stream, bool sync) : stream_(stream), sync_(sync) {
    size_t nodes = 0;
    CUDA_CHECK(cudaGraphGetNodes(graph, nullptr, &nodes));
    calls_ = static_cast<int64_t>(nodes);
    CUDA_CHECK(cudaGraphInstantiate(&graph_, graph, 0));
  }
  ~GraphReplay() override { cudaGraphExecDestroy(graph_); }
  void run() override {
    CUDA_CHECK(cudaGraphLaunch(graph_, stream_));
    if (sync_) CUDA_CHECK(cudaStreamSynchronize(stream_));
  }
  int64_t calls() const override { return calls_; }

 private:
  cudaGraphExec_t graph_ = nullptr;
  int64_t calls_ = 0;
  cudaStream_t stream_;
  bool sync_;
};

}  // namespace

struct CudaBackend::State {
  State(CudaBackend& backend, int number)
      : card(number),
        properties(properties_of(number)),
        staging({.allocate = [&backend](size_t bytes) { return backend.allocate(bytes); },
                 .release = [&backend](void* data) { backend.release(data); }}),
        context(backend, failure.get(), stream.get(), properties.multiProcessorCount,
                10 * properties.major + properties.minor),
        matmuls(context, switched_on("CSML_TF32")),
        convolutions(context, matmuls,
                     {.tf32 = switched_on("CSML_TF32"), .deterministic = switched_on("CSML_DETERMINISTIC")}) {}

  const int card;
  const cudaDeviceProp properties;
  const bool sync = switched_on("CSML_SYNC");
  SharedFailure failure;
  cuda::Stream stream;
  cuda::Stream copies;  // of copy_beside()
  cuda::Event copies_begin, copies_end;
  bool copies_forked = false;  // since the last join_copies()
  cuda::Staging staging;
  cuda::Context context;
  cuda::Matmuls matmuls;
  cuda::Convolutions convolutions;
};

std::string CudaBackend::why_not(int card) {
  std::string why;
  const int cards = count_cards(why);
  if (cards == 0) return why;
  if (card < 0 || card >= cards)
    return cat("there is no card {}: this machine has {}; use cuda:0{}", card, cards,
               cards > 1 ? cat(" to cuda:{}", cards - 1) : "");
  cudaDeviceProp properties{};
  const cudaError_t status = cudaGetDeviceProperties(&properties, card);
  if (status != cudaSuccess)
    return cat("card {} does not answer: {} ({}); see nvidia-smi", card, cudaGetErrorString(status),
               cudaGetErrorName(status));
  if (10 * properties.major + properties.minor < kOldestCapability)
    return cat("{} has compute capability {}.{}; csml needs 8.0 (A100) or newer, or --device cpu", properties.name,
               properties.major, properties.minor);
  return "";
}

bool CudaBackend::sees_a_card() {
  int driver = 0, cards = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) return false;
  const cudaError_t status = cudaGetDeviceCount(&cards);
  cudaGetLastError();  // clears it
  return status != cudaErrorNoDevice && (status != cudaSuccess || cards > 0);
}

CudaBackend::CudaBackend(int card) {
  if (const std::string why = why_not(card); !why.empty()) throw Error(why);
  cuda::cudnn();
  cuda::cublas_lt();
  state_ = std::make_unique<State>(*this, card);
}

CudaBackend::~CudaBackend() {
  cudaStreamSynchronize(state_->stream.get());  // nothing may still use what goes now
  state_.reset();                               // its scratch memory is released through this backend
}

cuda::Context& CudaBackend::context() { return state_->context; }

void* CudaBackend::allocate(size_t bytes) {
  void* data = nullptr;
  const cudaError_t status = cudaMalloc(&data, bytes);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // clears it
    size_t free = 0, total = 0;
    CUDA_CHECK(cudaMemGetInfo(&free, &total));
    throw Error(cat("out of memory on cuda:{} ({}): {:.2f} GiB asked, {:.2f} of {:.2f} GiB free; use a smaller batch",
                    state_->card, state_->properties.name, gib(bytes), gib(free), gib(total)));
  }
  CUDA_CHECK(status);
  blocks_.emplace(data, bytes);
  memory_.now += bytes;
  memory_.peak = std::max(memory_.peak, memory_.now);
  return data;
}

void CudaBackend::release(void* data) {
  if (const auto block = blocks_.find(data); block != blocks_.end()) {
    memory_.now -= block->second;
    blocks_.erase(block);
  }
  const cudaError_t status = cudaFree(data);
  if (status != cudaSuccess)  // called by destructors
    fmt::print(stderr, "warning: cudaFree: {} ({})\n", cudaGetErrorString(status), cudaGetErrorName(status));
}

void CudaBackend::upload(void* device, const void* host, size_t bytes) {
  if (bytes == 0) return;
  State& s = *state_;
  if (s.context.is_recording()) return s.staging.upload_now(device, host, bytes);
  s.staging.upload(s.stream.get(), device, host, bytes);
}

std::unique_ptr<Readback> CudaBackend::readback(size_t bytes) {
  return std::make_unique<cuda::PinnedReadback>(state_->stream.get(), bytes, [this] {
    // A kernel may be about to say the rest of what it has to report.
    if (state_->failure.get()->what != cuda::Failure::none) synchronize();
  });
}

void CudaBackend::download(void* host, const void* device, size_t bytes) {
  CHECK(!state_->context.is_recording(), "device data cannot be read while a step is recorded");
  if (bytes) state_->staging.download(state_->stream.get(), host, device, bytes);
  state_->context.check_failure();
}

void CudaBackend::copy_beside(const Copy& args) {
  State& s = *state_;
  CHECK(args.x.dtype == args.y.dtype && args.x.size() == args.y.size(), "copy_beside of {} into {}",
        args.x.shape.text(), args.y.shape.text());
  s.copies_begin.order(s.stream.get(), s.copies.get());
  CUDA_CHECK(cudaMemcpyAsync(args.y.data, args.x.data, args.x.bytes(), cudaMemcpyDeviceToDevice, s.copies.get()));
  s.copies_forked = true;
}

void CudaBackend::join_copies() {
  // Only what was forked: in a capture, waiting for a stream that does not belong to it is refused.
  if (!std::exchange(state_->copies_forked, false)) return;
  state_->copies_end.order(state_->copies.get(), state_->stream.get());
}

void CudaBackend::synchronize() {
  CHECK(!state_->context.is_recording(), "the card cannot be waited for while a step is recorded");
  CUDA_CHECK(cudaStreamSynchronize(state_->stream.get()));
  state_->context.check_failure();
}

void* CudaBackend::stream() const { return state_->stream.get(); }

std::unique_ptr<Replay> CudaBackend::record(const std::function<void()>& work) {
  State& s = *state_;
  CHECK(!s.context.is_recording(), "a recording is already under way");
  synchronize();  // uploads inside must not overtake what came before
  // Relaxed: the work's tensors are allocated while it is captured.
  CUDA_CHECK(cudaStreamBeginCapture(s.stream.get(), cudaStreamCaptureModeRelaxed));
  s.context.set_recording(true);
  cudaGraph_t raw = nullptr;
  try {
    work();
  } catch (...) {
    s.context.set_recording(false);
    s.copies_forked = false;
    cudaStreamEndCapture(s.stream.get(), &raw);
    if (raw) cudaGraphDestroy(raw);
    cudaGetLastError();  // clears what ending a broken capture leaves
    throw;
  }
  s.context.set_recording(false);
  CUDA_CHECK(cudaStreamEndCapture(s.stream.get(), &raw));
  const std::unique_ptr<CUgraph_st, decltype(&cudaGraphDestroy)> graph(raw, cudaGraphDestroy);
  auto replay = std::make_unique<GraphReplay>(graph.get(), s.stream.get(), s.sync);
  replay->run();
  return replay;
}

void CudaBackend::finish(const char* call) {
  if (!state_->sync || state_->context.is_recording()) return;
  try {
    synchronize();
  } catch (const Error& error) { throw Error(cat("CSML_SYNC: after {}: {}", call, error.what())); }
}

void CudaBackend::conv2d(const Conv2d& args) {
  state_->convolutions.forward(args);
  finish("conv2d");
}

void CudaBackend::conv2d_grad_input(const Conv2dGradInput& args) {
  state_->convolutions.grad_input(args);
  finish("conv2d_grad_input");
}

void CudaBackend::conv2d_grad_weight(const Conv2dGradWeight& args) {
  state_->convolutions.grad_weight(args);
  finish("conv2d_grad_weight");
}

void CudaBackend::matmul(const Matmul& args) {
  state_->matmuls.matmul(args);
  finish("matmul");
}

}  // namespace csml
