#include "engine/comm.h"

#include <algorithm>
#include <cstdlib>

#include "engine/ops.h"

namespace csml {

namespace {

class LocalComm final : public Comm {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  void all_reduce_mean(const Tensor&) override {}
  void all_reduce_sum(const Tensor&) override {}
  void all_reduce_max(const Tensor&) override {}
  void all_reduce_min(const Tensor&) override {}
  void all_gather(const Tensor& mine, const Tensor& all) override {
    if (ConstView(mine).data != ConstView(all).data) copy(mine, all);
  }
  void broadcast(const Tensor&, int root) override { CHECK(root == 0, "broadcast from rank {} of 1", root); }
  void barrier() override {}
  void fork() override {}
  void join() override {}
  bool recordable() const override { return true; }
  void phase(const std::string&) override {}
  void abort(const std::string&, int) override {}
};

/// The number in the first of these environment variables that is set; -1: none is.
int number_in(std::initializer_list<const char*> names) {
  for (const char* name : names) {
    const char* text = std::getenv(name);
    if (!text || !*text) continue;
    char* end = nullptr;
    const long value = std::strtol(text, &end, 10);
    if (*end || value < 0 || value > 1 << 24)
      throw UsageError(cat("{}={} in the environment: not a number", name, text));
    return static_cast<int>(value);
  }
  return -1;
}

/// Tasks on this node of a Slurm step: entry $SLURM_NODEID of a list like "8(x2),4"; -1: not in one.
int slurm_tasks_here() {
  const char* list = std::getenv("SLURM_STEP_TASKS_PER_NODE");
  int node = number_in({"SLURM_NODEID"});
  if (!list || node < 0) return -1;
  const auto number = [](const char*& at) {
    char* end = nullptr;
    const long value = std::strtol(at, &end, 10);
    at = end;
    return static_cast<int>(value);
  };
  for (const char* at = list; *at;) {
    const int tasks = number(at);
    int times = 1;
    if (at[0] == '(' && at[1] == 'x') {
      at += 2;
      times = number(at);
    }
    if (node < times) return tasks > 0 ? tasks : -1;
    node -= times;
    while (*at && *at != ',') ++at;
    if (*at == ',') ++at;
  }
  return -1;
}

}  // namespace

std::unique_ptr<Comm> Comm::local() { return std::make_unique<LocalComm>(); }

Comm& Comm::alone() {
  static LocalComm comm;
  return comm;
}

Launch launch() {
  // Open MPI's own variables, then PMIx (srun --mpi=pmix), PMI-2 and Hydra.
  const int mpi_rank = number_in({"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"});
  const int mpi_size = number_in({"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"});
  Launch l;
  if (mpi_rank >= 0 && mpi_size > 0) {
    l = {.by = Launch::By::mpi, .rank = mpi_rank, .size = mpi_size};
    l.local_rank = std::max(0, number_in({"OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID", "MPI_LOCALRANKID"}));
    l.local_size = number_in({"OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"});
    l.local_size = std::max(1, l.local_size > 0 ? l.local_size : slurm_tasks_here());
  } else if (const int size = number_in({"WORLD_SIZE"}); size >= 0) {
    l = {.by = Launch::By::variables, .rank = number_in({"RANK"}), .size = size};
    l.local_rank = std::max(0, number_in({"LOCAL_RANK"}));
    l.local_size = std::max(1, number_in({"LOCAL_WORLD_SIZE"}));
  } else if (const int step_rank = number_in({"SLURM_PROCID"}); step_rank >= 0) {
    const int tasks = number_in({"SLURM_STEP_NUM_TASKS"});  // set for tasks of srun, not for the batch script itself
    if (tasks > 0) l = {.by = Launch::By::variables, .rank = step_rank, .size = tasks};
    l.local_rank = std::max(0, number_in({"SLURM_LOCALID"}));
    l.local_size = std::max(1, slurm_tasks_here());
  }
  if (l.rank < 0 || l.rank >= l.size)
    throw UsageError(
        cat("rank {} of {} processes in the environment: RANK must be in 0 … WORLD_SIZE - 1", l.rank, l.size));
  if (l.size == 1) l = {};
  return l;
}

std::unique_ptr<Comm> Comm::open(Device& device, [[maybe_unused]] const CommOptions& options) {
  const Launch job = launch();
  if (job.size == 1) return local();
  [[maybe_unused]] const bool with_mpi = job.by == Launch::By::mpi;
  if (std::string(device.name()) == "cpu") {
#if WITH_MPI
    if (with_mpi) return open_mpi(device, options);
    throw Error(
        cat("{} processes on the CPU talk over MPI: start them with mpirun, or with srun --mpi=pmix", job.size));
#else
    throw Error(
        cat("this is one of {} processes, but the build has no MPI; install libopenmpi-dev and configure with "
            "-DWITH_MPI=ON, or start one process",
            job.size));
#endif
  }
#if WITH_NCCL
  std::unique_ptr<Device> host;
  std::unique_ptr<Comm> bootstrap;
#if WITH_MPI
  if (with_mpi) {
    host = Device::open("cpu");
    bootstrap = open_mpi(*host, options);
  }
#endif
  return open_nccl(device, job, options, std::move(host), std::move(bootstrap));
#else
  throw Error(
      cat("this is one of {} processes on {}, but the build has no NCCL; configure with -DWITH_NCCL=ON, or start "
          "one process",
          job.size, device.name()));
#endif
}

CommFacts comm_facts() {
  CommFacts facts{.mpi = "not in this build", .nccl = "not in this build"};
#if WITH_MPI
  facts.mpi = mpi_version();
  facts.has_mpi = true;
#endif
#if WITH_NCCL
  try {
    facts.nccl = nccl_version();
    facts.has_nccl = true;
  } catch (const Error& e) { facts.nccl = e.what(); }
#endif
  return facts;
}

std::vector<std::string> gather_text(Comm& comm, Device& device, const std::string& mine) {
  const auto ranks = static_cast<size_t>(comm.size());
  const Tensor lengths(device, {comm.size()}, DType::i32);
  comm.all_gather(Tensor::from(device, {1}, std::vector<int32_t>{static_cast<int32_t>(mine.size())}), lengths);
  const std::vector<int32_t> length = lengths.host<int32_t>();
  const auto longest = static_cast<size_t>(*std::max_element(length.begin(), length.end()));
  std::vector<std::string> texts(ranks);
  if (longest == 0) return texts;
  std::vector<uint8_t> padded(longest, 0);
  std::copy(mine.begin(), mine.end(), padded.begin());
  const Tensor all(device, {static_cast<int64_t>(ranks * longest)}, DType::u8);
  comm.all_gather(Tensor::from(device, {static_cast<int64_t>(longest)}, padded), all);
  const std::vector<uint8_t> bytes = all.host<uint8_t>();
  for (size_t r = 0; r < ranks; ++r) {
    const auto* first = reinterpret_cast<const char*>(bytes.data()) + r * longest;
    texts[r].assign(first, static_cast<size_t>(length[r]));
  }
  return texts;
}

std::string broadcast_text(Comm& comm, Device& device, const std::string& text, int root) {
  const Tensor length = Tensor::from(device, {1}, std::vector<int32_t>{static_cast<int32_t>(text.size())});
  comm.broadcast(length, root);
  std::vector<uint8_t> bytes(static_cast<size_t>(length.host<int32_t>()[0]));
  if (bytes.empty()) return "";
  if (comm.rank() == root) std::copy(text.begin(), text.end(), bytes.begin());
  const Tensor all = Tensor::from(device, {static_cast<int64_t>(bytes.size())}, bytes);
  comm.broadcast(all, root);
  bytes = all.host<uint8_t>();
  return {bytes.begin(), bytes.end()};
}

Share share_of(const Comm& comm, int64_t n) {
  const int64_t each = (n + comm.size() - 1) / comm.size();
  return {.each = each, .first = std::min(n, each * comm.rank()), .last = std::min(n, each * (comm.rank() + 1))};
}

}  // namespace csml
