// Comm over NCCL, for tensors on CUDA devices: a non-blocking communicator on a stream of its own. The only file that
// sees NCCL, whose library is loaded when a communicator is opened: csml starts without it. Not yet run on a GPU
// (docs/gpu.md).
#include <dlfcn.h>
#include <nccl.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <thread>

#include "engine/comm.h"
#include "engine/file.h"
#include "engine/text.h"
#include "engine/watchdog.h"

namespace csml {

namespace {

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw Error(cat("{}: {}", what, cudaGetErrorString(status)));
}
#define CUDA_CHECK(call) check(call, #call)

/// NCCL's functions.
class Nccl {
 public:
  static const Nccl& get() {
    static const Nccl instance;
    return instance;
  }

 private:
  void* library_ = ::dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);

  template <class F>
  F load(const char* name) const {
    void* symbol = library_ ? ::dlsym(library_, name) : nullptr;
    if (!symbol)
      throw Error(
          cat("several processes on CUDA devices need NCCL: {} (package libnccl2, or its folder in "
              "LD_LIBRARY_PATH)",
              library_ ? cat("libnccl.so.2 has no {}", name) : "no libnccl.so.2 is found"));
    return reinterpret_cast<F>(symbol);
  }

 public:
#define LOAD(member, function) decltype(&::function) member = load<decltype(&::function)>(#function)
  LOAD(get_version, ncclGetVersion);
  LOAD(get_unique_id, ncclGetUniqueId);
  LOAD(init, ncclCommInitRankConfig);
  LOAD(async_error, ncclCommGetAsyncError);
  LOAD(abort, ncclCommAbort);
  LOAD(finalize, ncclCommFinalize);
  LOAD(destroy, ncclCommDestroy);
  LOAD(all_reduce, ncclAllReduce);
  LOAD(all_gather, ncclAllGather);
  LOAD(broadcast, ncclBroadcast);
  LOAD(error_text, ncclGetErrorString);
  LOAD(last_error, ncclGetLastError);
#undef LOAD
};

class NcclComm final : public Comm {
 public:
  NcclComm(Device& device, int rank, int size, const ncclUniqueId& id, double timeout_seconds,
           std::unique_ptr<Device> host, std::unique_ptr<Comm> bootstrap)
      : rank_(rank),
        size_(size),
        timeout_seconds_(timeout_seconds),
        compute_(static_cast<cudaStream_t>(device.backend().stream())),
        host_(std::move(host)),
        bootstrap_(std::move(bootstrap)),
        watchdog_(rank, size, timeout_seconds) {
    // Without it every collective would be ordered behind nothing: gradients reduced before backward has written them.
    CHECK(compute_, "NCCL works on CUDA devices, not on {}", device.backend().name());
    CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    CUDA_CHECK(cudaEventCreateWithFlags(&ready_, cudaEventDisableTiming));
    CUDA_CHECK(cudaEventCreateWithFlags(&done_, cudaEventDisableTiming));
    CUDA_CHECK(cudaMalloc(&scratch_, sizeof(int32_t)));
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    settle("ncclCommInitRankConfig", nccl_.init(&comm_, size, id, rank, &config));
  }
  ~NcclComm() override {
    // A communicator whose partners are gone is aborted: finalising would wait for them.
    if (std::uncaught_exceptions() > 0) {
      nccl_.abort(comm_);
    } else {
      cudaStreamSynchronize(stream_);
      settle("ncclCommFinalize", nccl_.finalize(comm_));
      nccl_.destroy(comm_);
    }
    cudaFree(scratch_);
    cudaEventDestroy(done_);
    cudaEventDestroy(ready_);
    cudaStreamDestroy(stream_);
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  void all_reduce_mean(const Tensor& t) override {
    CHECK(t.dtype() == DType::f32, "all_reduce_mean of {}", name_of(t.dtype()));
    reduce(t, ncclAvg, "all_reduce_mean");
  }
  void all_reduce_sum(const Tensor& t) override { reduce(t, ncclSum, "all_reduce_sum"); }
  void all_reduce_max(const Tensor& t) override { reduce(t, ncclMax, "all_reduce_max"); }
  void all_reduce_min(const Tensor& t) override { reduce(t, ncclMin, "all_reduce_min"); }

  void all_gather(const Tensor& mine, const Tensor& all) override {
    CHECK(mine.dtype() == all.dtype() && all.shape() == mine.shape().with_rows(mine.shape()[0] * size_),
          "all_gather of {} {} from {} processes into {} {}", name_of(mine.dtype()), mine.shape().text(), size_,
          name_of(all.dtype()), all.shape().text());
    const ConstView from = mine;
    const View to = all;
    run("all_gather", mine.bytes(),
        [&] { return nccl_.all_gather(from.data, to.data, mine.bytes(), ncclInt8, comm_, stream_); });
  }
  void broadcast(const Tensor& t, int root) override {
    CHECK(root >= 0 && root < size_, "broadcast from rank {} of {}", root, size_);
    const View v = t;
    run("broadcast", t.bytes(),
        [&] { return nccl_.broadcast(v.data, v.data, t.bytes(), ncclInt8, root, comm_, stream_); });
  }
  void barrier() override {
    run("barrier", 0, [&] { return nccl_.all_reduce(scratch_, scratch_, 1, ncclInt32, ncclMax, comm_, stream_); });
    CUDA_CHECK(cudaStreamSynchronize(stream_));
  }

  void fork() override { forked_ = true; }
  void join() override {
    forked_ = false;
    CUDA_CHECK(cudaEventRecord(done_, stream_));
    CUDA_CHECK(cudaStreamWaitEvent(compute_, done_, 0));
  }
  bool recordable() const override { return false; }  // until a graph with collectives has been seen to replay
  void phase(const std::string& text) override { watchdog_.phase(text); }
  void abort(const std::string& why, int exit_code) override {
    if (bootstrap_) return bootstrap_->abort(why, exit_code);
    std::fputs(cat("csml: [rank {}] {}\n", rank_, printable(why, 4000)).c_str(), stderr);  // never throws
    std::fflush(stderr);
    ::_exit(exit_code);  // the launcher ends the others
  }

 private:
  struct Note {
    Watchdog* watchdog;
    const char* name;
    size_t bytes;
  };

  /// A non-blocking communicator may answer "in progress": asks until it is done.
  void settle(const char* what, ncclResult_t status) {
    const auto start = std::chrono::steady_clock::now();
    while (status == ncclInProgress) {
      if (const ncclResult_t asked = nccl_.async_error(comm_, &status); asked != ncclSuccess) {
        status = asked;
        break;
      }
      const std::chrono::duration<double> waited = std::chrono::steady_clock::now() - start;
      if (timeout_seconds_ > 0 && waited.count() > timeout_seconds_)
        watchdog_.fail(cat("{} has waited {:.0f} s", what, waited.count()));
      std::this_thread::yield();
    }
    if (status != ncclSuccess)
      watchdog_.fail(cat("{}: {} ({})", what, nccl_.error_text(status), nccl_.last_error(comm_)));
  }

  /// After the kernels before it, on the own stream; the kernels after it wait, unless it `runs_ahead`. The
  /// watchdog is told by the stream itself when it comes to the call and when it has passed it.
  template <class F>
  void run(const char* name, size_t bytes, const F& collective, bool runs_ahead = false) {
    CUDA_CHECK(cudaEventRecord(ready_, compute_));
    CUDA_CHECK(cudaStreamWaitEvent(stream_, ready_, 0));
    auto* note = new Note{&watchdog_, name, bytes};
    CUDA_CHECK(cudaLaunchHostFunc(
        stream_,
        [](void* data) {
          const auto* n = static_cast<Note*>(data);
          n->watchdog->enter(n->name, n->bytes);
        },
        note));
    settle(name, collective());
    CUDA_CHECK(cudaLaunchHostFunc(
        stream_,
        [](void* data) {
          const std::unique_ptr<Note> n(static_cast<Note*>(data));
          n->watchdog->leave();
        },
        note));
    if (runs_ahead) return;
    CUDA_CHECK(cudaEventRecord(done_, stream_));
    CUDA_CHECK(cudaStreamWaitEvent(compute_, done_, 0));
  }

  void reduce(const Tensor& t, ncclRedOp_t op, const char* name) {
    CHECK(t.dtype() == DType::f32 || t.dtype() == DType::i32, "{} of {}", name, name_of(t.dtype()));
    const View v = t;
    const ncclDataType_t type = t.dtype() == DType::f32 ? ncclFloat32 : ncclInt32;
    run(
        name, t.bytes(),
        [&] { return nccl_.all_reduce(v.data, v.data, static_cast<size_t>(t.size()), type, op, comm_, stream_); },
        forked_);
  }

  const Nccl& nccl_ = Nccl::get();
  int rank_, size_;
  double timeout_seconds_;
  cudaStream_t compute_, stream_ = nullptr;
  cudaEvent_t ready_ = nullptr, done_ = nullptr;
  void* scratch_ = nullptr;
  ncclComm_t comm_ = nullptr;
  bool forked_ = false;
  std::unique_ptr<Device> host_;
  std::unique_ptr<Comm> bootstrap_;
  Watchdog watchdog_;
};

std::string rendezvous_path(const CommOptions& options) {
  const char* variable = std::getenv("CSML_RENDEZVOUS");
  return !options.rendezvous.empty() ? options.rendezvous : variable ? variable : "";
}

/// Rank 0's id through a file that all processes see.
ncclUniqueId id_through_file(const Launch& launch, const CommOptions& options) {
  const std::string path = rendezvous_path(options);
  if (path.empty())
    throw UsageError(
        cat("{} processes without MPI meet through a file: set CSML_RENDEZVOUS to a new file's name on a "
            "file system that all of them see",
            launch.size));
  ncclUniqueId id;
  if (launch.rank == 0) {
    if (std::filesystem::exists(path)) throw Error(cat("{} exists: give every job a rendezvous file of its own", path));
    if (Nccl::get().get_unique_id(&id) != ncclSuccess)
      throw Error("ncclGetUniqueId failed: is there a GPU and its driver?");
    write_text_file(path, std::string(id.internal, sizeof id.internal));  // whole or absent
    return id;
  }
  const auto start = std::chrono::steady_clock::now();
  while (!std::filesystem::exists(path)) {
    const std::chrono::duration<double> waited = std::chrono::steady_clock::now() - start;
    if (options.timeout_seconds > 0 && waited.count() > options.timeout_seconds)
      throw Error(cat("rank 0 has not written {} in {:.0f} s", path, waited.count()));
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  const std::string bytes = read_text_file(path, sizeof id.internal);
  CHECK(bytes.size() == sizeof id.internal, "{} is no rendezvous file: {} bytes", path, bytes.size());
  std::memcpy(id.internal, bytes.data(), bytes.size());
  return id;
}

}  // namespace

std::string nccl_version() {
  int number = 0;
  if (Nccl::get().get_version(&number) != ncclSuccess) throw Error("NCCL does not tell its version");
  return cat("{}.{}.{}", number / 10000, number / 100 % 100, number % 100);  // since 2.9
}

std::unique_ptr<Comm> open_nccl(Device& device, const Launch& launch, const CommOptions& options,
                                std::unique_ptr<Device> host, std::unique_ptr<Comm> bootstrap) {
  ncclUniqueId id;
  if (bootstrap) {
    std::vector<uint8_t> bytes(sizeof id.internal, 0);
    if (launch.rank == 0) {
      if (Nccl::get().get_unique_id(&id) != ncclSuccess)
        throw Error("ncclGetUniqueId failed: is there a GPU and its driver?");
      std::memcpy(bytes.data(), id.internal, bytes.size());
    }
    const Tensor carried = Tensor::from(*host, {static_cast<int64_t>(bytes.size())}, bytes);
    bootstrap->broadcast(carried, 0);
    bytes = carried.host<uint8_t>();
    std::memcpy(id.internal, bytes.data(), bytes.size());
  } else {
    id = id_through_file(launch, options);
  }
  auto comm = std::make_unique<NcclComm>(device, launch.rank, launch.size, id, options.timeout_seconds, std::move(host),
                                         std::move(bootstrap));
  comm->barrier();
  std::error_code ignored;
  if (launch.by == Launch::By::variables && launch.rank == 0)
    std::filesystem::remove(rendezvous_path(options), ignored);
  return comm;
}

}  // namespace csml
