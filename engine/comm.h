// Comm: what processes say to each other. One process is an implementation, not an `if`.
//
// Every process of a job makes the same calls in the same order, from one thread. Calls are ordered with the kernels of
// the tensors' device, like kernels themselves, and may stand inside a recorded step where recordable() says so.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/tensor.h"

namespace csml {

/// How this process was started, by the environment that mpirun, srun or torchrun leave.
struct Launch {
  enum class By { alone, mpi, variables };  // mpi: mpirun, or srun with PMIx; variables: RANK, WORLD_SIZE, LOCAL_RANK
  By by = By::alone;
  int rank = 0, size = 1;              // among all processes of the job
  int local_rank = 0, local_size = 1;  // among those of this machine
};
/// Throws UsageError where the variables contradict each other.
Launch launch();

/// Exit code of a process that gave up waiting for another one.
inline constexpr int kExitLost = 70;

struct CommOptions {
  double timeout_seconds = 600;  // longest a collective may take before the process reports and ends; 0: no limit
  std::string rendezvous;        // NCCL without MPI: a new file on a shared file system; empty: $CSML_RENDEZVOUS
};

class Comm {
 public:
  virtual ~Comm() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  /// In place, over all ranks; the same bits on every rank. mean: f32; the others f32 or i32.
  virtual void all_reduce_mean(const Tensor& t) = 0;
  virtual void all_reduce_sum(const Tensor& t) = 0;
  virtual void all_reduce_max(const Tensor& t) = 0;
  virtual void all_reduce_min(const Tensor& t) = 0;
  /// all [size * rows, …] = the ranks' `mine` [rows, …] in rank order; any type. `mine` may be its own rows of `all`.
  virtual void all_gather(const Tensor& mine, const Tensor& all) = 0;
  /// t of rank `root` on every rank; any type.
  virtual void broadcast(const Tensor& t, int root) = 0;
  virtual void barrier() = 0;
  /// Reductions between fork() and join() only start; their tensors must be left alone until join() has returned.
  virtual void fork() = 0;
  virtual void join() = 0;
  /// Between them: moves on what was started, for libraries that do so only while they are called.
  virtual void advance() {}
  /// May its calls stand inside a recorded step?
  virtual bool recordable() const = 0;
  /// Names what this process does from now on, for the report of a process that waits in vain.
  virtual void phase(const std::string& text) = 0;
  /// Says why on standard error and ends every process of the job with this exit code. Returns where there is no other
  /// process.
  virtual void abort(const std::string& why, int exit_code) = 0;

  /// This process alone.
  static std::unique_ptr<Comm> local();
  /// The same, for whoever was not given another: it holds nothing.
  static Comm& alone();
  /// The job that launch() describes, for tensors of this device: MPI for the CPU, NCCL for CUDA. Throws Error where
  /// the build lacks what the job needs.
  static std::unique_ptr<Comm> open(Device& device, const CommOptions& options);
};

/// What the build can talk over: each a version, "not in this build", or why it cannot be used.
struct CommFacts {
  std::string mpi{}, nccl{};
  bool has_mpi = false, has_nccl = false;
};
CommFacts comm_facts();

// Compiled where the build has them (engine/comm_mpi.cpp, engine/comm_nccl.cpp); Comm::open() is the way to them.
std::unique_ptr<Comm> open_mpi(Device& device, const CommOptions& options);
/// `bootstrap` (MPI over memory of `host`; both null without MPI) carries the communicator's id, else a file does.
std::unique_ptr<Comm> open_nccl(Device& device, const Launch& launch, const CommOptions& options,
                                std::unique_ptr<Device> host, std::unique_ptr<Comm> bootstrap);
std::string mpi_version();
/// Throws Error where NCCL cannot be loaded.
std::string nccl_version();

/// Every rank's text, by rank. For words and small tables, between steps.
std::vector<std::string> gather_text(Comm& comm, Device& device, const std::string& mine);
/// The root's text on every rank.
std::string broadcast_text(Comm& comm, Device& device, const std::string& text, int root = 0);
/// The part [first, last) of n items that is this rank's: equal contiguous parts, the last ones shorter or empty.
struct Share {
  int64_t each = 0, first = 0, last = 0;
};
Share share_of(const Comm& comm, int64_t n);

}  // namespace csml
