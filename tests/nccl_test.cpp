// The communicator over NCCL on stand-ins for NCCL and the CUDA runtime, whose streams work in random order: a collective
// that is not ordered behind the kernels before it, or before those after it, gives a wrong number.
#include <cstdlib>

#include "engine/comm.h"
#include "kernels/cpu/backend.h"
#include "kernels/cuda/stream.h"
#include "tests/files.h"
#include "tests/vendor/runtime.h"

#include <doctest/doctest.h>

using namespace csml;
namespace runtime = csml::test::runtime;

namespace {

/// Memory of the host, and a stream on which calls are queued instead of done.
class Streaming final : public CpuBackend {
 public:
  void* stream() const override { return stream_.get(); }
  cudaStream_t handle() const { return stream_.get(); }

 private:
  cuda::Stream stream_;
};

float* values(const Tensor& t) { return static_cast<float*>(View(t).data); }

std::unique_ptr<Comm> open(Device& device, const Folder& folder) {
  const CommOptions options{.timeout_seconds = 20, .rendezvous = (folder.path / "id").string()};
  return open_nccl(device, {.by = Launch::By::variables, .rank = 0, .size = 2}, options, nullptr, nullptr);
}

/// A device whose calls are queued on `stream`, and its communicator.
struct Queued {
  const Folder folder{};
  cudaStream_t stream = nullptr;
  std::unique_ptr<Device> device = [this] {
    auto backend = std::make_unique<Streaming>();
    stream = backend->handle();
    return std::make_unique<Device>(std::move(backend));
  }();
  std::unique_ptr<Comm> comm = open(*device, folder);
};

constexpr int kOrders = 200;  // with the order behind the compute stream left out, half of them are wrong

}  // namespace

TEST_CASE("a reduction comes behind the kernels before it and before those after it, in every order of the streams") {
  const Queued queued;
  const cudaStream_t stream = queued.stream;
  Device& device = *queued.device;
  Comm* comm = queued.comm.get();
  for (int order = 0; order < kOrders; ++order) {
    runtime::seed(static_cast<uint64_t>(order));
    const Tensor t = Tensor::full(device, {4}, 0);
    float seen = 0;
    runtime::kernel(stream, [&] { values(t)[3] = 5; });
    comm->all_reduce_mean(t);
    runtime::kernel(stream, [&] { seen = values(t)[3]; });
    cudaStreamSynchronize(stream);
    CHECK(seen == 3);  // (5 + 1) / 2
    runtime::kernel(stream, [&] { values(t)[0] = 8; });
    comm->all_reduce_sum(t);
    comm->all_reduce_max(t);
    comm->broadcast(t, 0);
    const Tensor all(device, {8});
    comm->all_gather(t, all);
    runtime::kernel(stream, [&] { seen = values(all)[0]; });
    cudaStreamSynchronize(stream);
    CHECK(seen == 9);
  }
}

TEST_CASE("between fork and join reductions run beside kernels, behind what wrote them; join is the end of all") {
  const Queued queued;
  const cudaStream_t stream = queued.stream;
  Device& device = *queued.device;
  Comm* comm = queued.comm.get();
  for (int order = 0; order < kOrders; ++order) {
    runtime::seed(static_cast<uint64_t>(order));
    const Tensor first = Tensor::full(device, {2}, 0), second = Tensor::full(device, {2}, 0);
    float sum = 0;
    comm->fork();
    runtime::kernel(stream, [&] { values(first)[0] = 3; });
    comm->all_reduce_mean(first);
    runtime::kernel(stream, [&] { values(second)[0] = 7; });  // backward goes on
    comm->all_reduce_mean(second);
    comm->join();
    runtime::kernel(stream, [&] { sum = values(first)[0] + values(second)[0]; });
    cudaStreamSynchronize(stream);
    CHECK(sum == 6);
  }
}

TEST_CASE("a device whose calls are done when they return has no stream to order collectives by: refused") {
  const Folder folder;
  Device device(std::make_unique<CpuBackend>());
  CHECK_THROWS_WITH_AS(open(device, folder), doctest::Contains("NCCL works on CUDA devices, not on cpu"), Error);
}
