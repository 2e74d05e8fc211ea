// Comm over MPI, for tensors in host memory. The only file that sees MPI.
#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>
#include <thread>

#include "engine/comm.h"
#include "engine/text.h"
#include "engine/timeline.h"
#include "engine/watchdog.h"

namespace csml {

namespace {

constexpr int64_t kMostElements = int64_t{1} << 28;  // of one MPI call, whose counts are ints

class MpiComm final : public Comm {
 public:
  MpiComm(Device& device, const CommOptions& options) : device_(device) {
    int already = 0, provided = 0;
    MPI_Initialized(&already);
    CHECK(!already, "MPI can be opened once in a process");
    if (MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided) != MPI_SUCCESS)
      throw Error("MPI did not start");
    MPI_Comm_dup(MPI_COMM_WORLD, &comm_);
    MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN);
    MPI_Comm_rank(comm_, &rank_);
    MPI_Comm_size(comm_, &size_);
    watchdog_ = std::make_unique<Watchdog>(rank_, size_, options.timeout_seconds);
  }
  ~MpiComm() override {
    watchdog_.reset();
    if (std::uncaught_exceptions() > 0) return;  // the others will not come to MPI_Finalize
    MPI_Comm_free(&comm_);
    MPI_Finalize();
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  void all_reduce_mean(const Tensor& t) override {
    CHECK(t.dtype() == DType::f32, "all_reduce_mean of {}", name_of(t.dtype()));
    reduce(t, MPI_SUM, "all_reduce_mean", true);
  }
  void all_reduce_sum(const Tensor& t) override { reduce(t, MPI_SUM, "all_reduce_sum", false); }
  void all_reduce_max(const Tensor& t) override { reduce(t, MPI_MAX, "all_reduce_max", false); }
  void all_reduce_min(const Tensor& t) override { reduce(t, MPI_MIN, "all_reduce_min", false); }

  void all_gather(const Tensor& mine, const Tensor& all) override {
    const int64_t rows = mine.shape()[0];
    CHECK(mine.dtype() == all.dtype() && all.shape() == mine.shape().with_rows(rows * size_),
          "all_gather of {} {} from {} processes into {} {}", name_of(mine.dtype()), mine.shape().text(), size_,
          name_of(all.dtype()), all.shape().text());
    const ConstView from = mine;
    const View to = all;
    const size_t row_bytes = rows ? mine.bytes() / static_cast<size_t>(rows) : 0;
    if (row_bytes == 0) return;
    CHECK(rows <= kMostElements && row_bytes <= static_cast<size_t>(kMostElements), "all_gather of {} rows of {} bytes",
          rows, row_bytes);
    host_call([this, from, to, rows, row_bytes] {
      MPI_Datatype row = MPI_DATATYPE_NULL;
      MPI_Type_contiguous(static_cast<int>(row_bytes), MPI_BYTE, &row);
      MPI_Type_commit(&row);
      char* own = static_cast<char*>(to.data) + static_cast<size_t>(rank_ * rows) * row_bytes;
      const int count = static_cast<int>(rows);
      call("all_gather", from.bytes(), [&] {
        return MPI_Allgather(from.data == own ? MPI_IN_PLACE : from.data, count, row, to.data, count, row, comm_);
      });
      MPI_Type_free(&row);
    });
  }

  void broadcast(const Tensor& t, int root) override {
    CHECK(root >= 0 && root < size_, "broadcast from rank {} of {}", root, size_);
    const View v = t;
    const auto bytes = static_cast<int64_t>(t.bytes());
    host_call([this, v, bytes, root] {
      for (int64_t first = 0; first < bytes; first += kMostElements)
        call("broadcast", static_cast<size_t>(bytes), [&] {
          const int count = static_cast<int>(std::min(kMostElements, bytes - first));
          return MPI_Bcast(static_cast<char*>(v.data) + first, count, MPI_BYTE, root, comm_);
        });
    });
  }

  void barrier() override {
    host_call([this] { call("barrier", 0, [this] { return MPI_Barrier(comm_); }); });
  }

  void fork() override {
    CHECK(!forked_, "fork() after fork()");
    forked_ = true;
  }
  void join() override {
    CHECK(forked_, "join() without fork()");
    forked_ = false;
    host_call([this] {
      Timeline* timeline = device_.timeline();
      const double begin = timeline ? timeline->now() : 0;
      for (Pending& p : pending_) {
        call("all_reduce (join)", p.bytes, [&] { return MPI_Wait(&p.request, MPI_STATUS_IGNORE); });
        seen_done(p);
        if (p.scale) scale(p.scale, p.count);
      }
      if (timeline && !pending_.empty()) timeline->add(Timeline::Track::waiting, "join", begin);
      pending_.clear();
    });
  }

  void advance() override {
    host_call([this] { push_on(); });
  }

  bool recordable() const override { return true; }  // the CPU's recording repeats host calls
  void phase(const std::string& text) override { watchdog_->phase(text); }

  void abort(const std::string& why, int exit_code) override {
    // What every rank meets, rank 0 tells; the others only come to speak when it does not.
    if (rank_ != 0) std::this_thread::sleep_for(std::chrono::seconds(2));
    std::fputs(cat("csml: [rank {}] {}\n", rank_, printable(why, 4000)).c_str(), stderr);  // never throws
    std::fflush(stderr);
    MPI_Abort(MPI_COMM_WORLD, exit_code);
  }

 private:
  struct Pending {
    MPI_Request request;
    float* scale;  // to be divided by size after the sum; null: not
    int64_t count;
    size_t bytes;
    double begin;  // on the timeline; below 0: not there, or told already
  };

  void seen_done(Pending& p) const {
    if (p.begin >= 0)
      device_.timeline()->add(Timeline::Track::communication,
                              cat("all-reduce of {:.2f} MiB", static_cast<double>(p.bytes) / 1048576), p.begin);
    p.begin = -1;
  }

  void host_call(const std::function<void()>& work) { device_.backend().host_call(work); }

  template <class F>
  void call(const char* name, size_t bytes, const F& f) {
    watchdog_->enter(name, bytes);
    if (const int status = f(); status != MPI_SUCCESS) {
      char text[MPI_MAX_ERROR_STRING] = "";
      int length = 0;
      MPI_Error_string(status, text, &length);
      watchdog_->fail(text);
    }
    watchdog_->leave();
  }

  void scale(float* x, int64_t n) const {
    const float factor = 1.f / static_cast<float>(size_);
    for (int64_t i = 0; i < n; ++i) x[i] *= factor;
  }

  void reduce(const Tensor& t, MPI_Op op, const char* name, bool mean) {
    CHECK(t.dtype() == DType::f32 || t.dtype() == DType::i32, "{} of {}", name, name_of(t.dtype()));
    const View v = t;
    const MPI_Datatype type = t.dtype() == DType::f32 ? MPI_FLOAT : MPI_INT32_T;
    const int64_t total = t.size();
    host_call([this, v, type, total, op, name, mean, overlap = forked_] {
      for (int64_t first = 0; first < total; first += kMostElements) {
        const int64_t count = std::min(kMostElements, total - first);
        void* data = static_cast<char*>(v.data) + first * 4;
        float* scaled = mean ? static_cast<float*>(data) : nullptr;
        const size_t bytes = static_cast<size_t>(count) * 4;
        if (overlap) {
          Pending p{MPI_REQUEST_NULL, scaled, count, bytes, device_.timeline() ? device_.timeline()->now() : -1};
          call(name, bytes, [&] {
            return MPI_Iallreduce(MPI_IN_PLACE, data, static_cast<int>(count), type, op, comm_, &p.request);
          });
          pending_.push_back(p);
          push_on();
        } else {
          call(name, bytes,
               [&] { return MPI_Allreduce(MPI_IN_PLACE, data, static_cast<int>(count), type, op, comm_); });
          if (scaled) scale(scaled, count);
        }
      }
    });
  }

  /// MPI moves what was started only while it is called.
  void push_on() {
    for (Pending& p : pending_) {
      int done = 0;
      if (p.request == MPI_REQUEST_NULL) continue;
      MPI_Test(&p.request, &done, MPI_STATUS_IGNORE);
      if (done) seen_done(p);
    }
  }

  Device& device_;
  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0, size_ = 1;
  bool forked_ = false;
  std::vector<Pending> pending_;
  std::unique_ptr<Watchdog> watchdog_;
};

}  // namespace

std::string mpi_version() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0;
  MPI_Get_library_version(text, &length);  // may be asked before MPI_Init
  const std::string all(text, static_cast<size_t>(length));
  return all.substr(0, all.find_first_of(",\n"));
}

std::unique_ptr<Comm> open_mpi(Device& device, const CommOptions& options) {
  return std::make_unique<MpiComm>(device, options);
}

}  // namespace csml
