// csml doctor: what a machine, or all machines of a job, have and lack for a run; one line a check.
#include "apps/doctor.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <filesystem>

#include "apps/command.h"
#include "apps/sizing.h"
#include "engine/log.h"
#include "engine/ops.h"

namespace csml {
namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  CommonOptions common;
  std::string device = "auto", out, data;
  double seconds = 2, timeout = 60;
  int64_t megabytes = 128;
  bool sizing = false;
  SizingInput input;
};

bool wants_card(const std::string& device) { return device.starts_with("cuda"); }

std::vector<Finding> examine_cuda(const CudaFacts& facts, const std::string& device) {
  std::vector<Finding> all;
  const bool asked = wants_card(device);
  Finding card{.check = "card", .text = "", .value = facts.cards.size()};
  if (!facts.built) {
    card.text = "this build has no CUDA backend";
    if (asked || std::filesystem::exists("/dev/nvidiactl")) {
      card.health = asked ? Health::fail : Health::warn;
      card.advice = "there, configure with cmake --preset cuda (scripts/setup.sh --cuda brings what it needs)";
    }
    return {card};
  }
  card.text = facts.cards.empty() ? "none is seen" : cat("{}", fmt::join(facts.cards, "; "));
  if (!facts.why_not.empty() && (asked || !facts.driver.empty())) {
    card.health = asked ? Health::fail : Health::warn;
    card.text = facts.why_not;
    card.advice = "see nvidia-smi; --device cpu goes without a card";
  }
  all.push_back(card);
  all.push_back(
      {.check = "CUDA",
       .text = cat("driver offers {}, built with {}", facts.driver.empty() ? "none" : facts.driver, facts.runtime)});
  const bool needed = asked || !facts.cards.empty();
  for (const auto& [name, library] : {std::pair("cuDNN", facts.cudnn), std::pair("cuBLASLt", facts.cublas_lt)}) {
    Finding f{.check = name, .text = library.error.empty() ? library.version : library.error};
    if (!library.error.empty() && needed) {
      f.health = Health::fail;
      f.advice = "CSML_CUDA_LIBRARIES=FOLDER:FOLDER";
    } else if (!library.warning.empty() && needed) {
      f.health = Health::warn;
      f.text = library.warning;
      f.advice = "CSML_CUDA_LIBRARIES=FOLDER:FOLDER names those of a newer one";
    }
    all.push_back(f);
  }
  if (facts.pairs > 0) {
    Finding topology{.check = "topology",
                     .text = cat("{} of {} pairs of cards reach each other's memory", facts.peers, facts.pairs),
                     .value = facts.peers};
    if (facts.peers < facts.pairs) {
      topology.health = Health::warn;
      topology.advice =
          "copies between the others pass through the host: see nvidia-smi topo -m, IOMMU and ACS settings";
    }
    all.push_back(topology);
  }
  return all;
}

std::vector<Finding> examine_libraries(const CommFacts& facts, const CudaFacts& cuda, const Launch& job) {
  Finding mpi{.check = "MPI", .text = facts.mpi};
  if (!facts.has_mpi && job.by == Launch::By::mpi) {
    mpi.health = Health::fail;
    mpi.advice = "several processes on the CPU talk over it: libopenmpi-dev, and configure with -DWITH_MPI=ON";
  }
  Finding nccl{.check = "NCCL", .text = facts.nccl};
  if (!facts.has_nccl && cuda.built && cuda.cards.size() > 1) {
    nccl.health = Health::warn;
    nccl.advice = "several cards talk over it: libnccl2, or its folder in LD_LIBRARY_PATH";
  }
  return {mpi, nccl};
}

/// The device opens and computes.
Finding examine_device(Device& device) {
  const Tensor x = Tensor::full(device, {1000}, 2.f), sum = Tensor::full(device, {1000}, 1.f);
  accumulate(x, sum);
  const bool right = sum.host<float>() == std::vector<float>(1000, 3.f);
  return {.check = "device",
          .health = right ? Health::ok : Health::fail,
          .text = right ? cat("{} opens and computes", device.name()) : cat("{} computes wrong sums", device.name()),
          .advice = right ? "" : "the hardware or its driver is broken: CSML_SYNC=1, other memory, another machine"};
}

/// Median seconds of one call.
template <class F>
double median_seconds(Device& device, Comm& comm, int calls, const F& call) {
  std::vector<double> seconds;
  for (int i = 0; i <= calls; ++i) {
    comm.barrier();
    const Clock::time_point start = Clock::now();
    call();
    device.backend().synchronize();
    if (i > 0) seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count());  // the first sets up
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

std::vector<Finding> examine_collectives(Device& device, Comm& comm) {
  constexpr int64_t kBytes = 64 << 20;
  const bool card = std::string(device.name()) != "cpu";
  const Tensor large = Tensor::full(device, {kBytes / 4}, 1.f), small = Tensor::full(device, {1}, 1.f);
  const double seconds = median_seconds(device, comm, 5, [&] { comm.all_reduce_max(large); });
  const double latency = median_seconds(device, comm, 50, [&] { comm.all_reduce_max(small); });
  // As nccl-tests has it: what each process must send and receive, over the time.
  const double bus = 2.0 * (comm.size() - 1) / comm.size() * static_cast<double>(kBytes) / seconds;
  Finding bandwidth{.check = "all-reduce: bandwidth",
                    .text = cat("{:.2f} GB/s (bus) for 64 MiB between {} processes, {:.1f} ms", bus / 1e9, comm.size(),
                                1e3 * seconds),
                    .value = bus};
  if (bus < (card ? 10e9 : 0.3e9)) {
    bandwidth.health = Health::warn;
    bandwidth.advice = card ? "slow for a GPU: NCCL_DEBUG=INFO shows the transport; NVLink, InfiniBand, /dev/shm"
                            : "slow even for a CPU: cores shared between processes, /dev/shm, or a slow network "
                              "(OMPI_MCA_btl_tcp_if_include)";
  }
  Finding delay{
      .check = "all-reduce: latency", .text = cat("{:.1f} us for one number", 1e6 * latency), .value = latency};
  if (latency > 2e-3) {
    delay.health = Health::warn;
    delay.advice = "processes wait for cores: fewer processes, --bind-to none";
  }
  // Spread of the wall clocks, by which logs of several machines are read beside each other.
  comm.barrier();
  const double now = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  double first = now, last = now;
  for (const std::string& text : gather_text(comm, device, cat("{:.6f}", now))) {
    first = std::min(first, std::atof(text.c_str()));
    last = std::max(last, std::atof(text.c_str()));
  }
  Finding clocks{.check = "clocks", .text = cat("{:.3f} s apart", last - first), .value = last - first};
  if (last - first > 5) {
    clocks.health = Health::warn;
    clocks.advice = "logs of these machines cannot be read beside each other: start an NTP client";
  }
  return {bandwidth, delay, clocks};
}

const char* word(Health health) { return health == Health::ok ? "ok" : health == Health::warn ? "warn" : "fail"; }

nlohmann::json to_json(const std::vector<Finding>& findings) {
  nlohmann::json list = nlohmann::json::array();
  for (const Finding& f : findings)
    list.push_back(
        {{"check", f.check}, {"health", word(f.health)}, {"text", f.text}, {"advice", f.advice}, {"value", f.value}});
  return list;
}

/// The findings of all processes: those of equal words once, with the ranks that have them.
nlohmann::json merged(const std::vector<nlohmann::json>& by_rank) {
  nlohmann::json list = nlohmann::json::array();
  for (size_t rank = 0; rank < by_rank.size(); ++rank)
    for (nlohmann::json f : by_rank[rank]) {
      const auto same = std::find_if(list.begin(), list.end(), [&](const nlohmann::json& other) {
        return other["check"] == f["check"] && other["health"] == f["health"] && other["text"] == f["text"];
      });
      if (same != list.end()) {
        (*same)["ranks"].push_back(rank);
      } else {
        f["ranks"] = {rank};
        // Behind the other lines of the same check.
        auto at = list.end();
        for (auto it = list.begin(); it != list.end(); ++it)
          if ((*it)["check"] == f["check"]) at = it + 1;
        list.insert(at, std::move(f));
      }
    }
  return list;
}

std::string lines(const nlohmann::json& findings, size_t processes) {
  std::string text;
  for (const nlohmann::json& f : findings) {
    const std::string advice = f["advice"].get<std::string>();
    const bool all = f["ranks"].size() == processes;
    text += cat("{:<5} {:<22} {}{}{}\n", f["health"].get<std::string>(), f["check"].get<std::string>(),
                all ? "" : cat("[rank {}] ", fmt::join(f["ranks"].get<std::vector<int>>(), ", ")),
                f["text"].get<std::string>(), advice.empty() ? "" : "; " + advice);
  }
  return text;
}

int report(const Options& o, const std::vector<nlohmann::json>& by_rank) {
  const nlohmann::json findings = merged(by_rank);
  std::map<std::string, int> count{{"ok", 0}, {"warn", 0}, {"fail", 0}};
  for (const nlohmann::json& f : findings) ++count[f["health"].get<std::string>()];
  nlohmann::json json{{"task", "doctor"}, {"processes", by_rank.size()}, {"findings", findings}};
  json.update(count);
  answer(o.common, json,
         lines(findings, by_rank.size()) +
             cat("{} ok, {} to look at, {} that will fail\n", count["ok"], count["warn"], count["fail"]));
  return count["fail"] > 0 ? 1 : 0;
}

int run(const Options& o) {
  if (o.sizing) {
    const std::vector<SizingRow> rows = sizing_table(o.input);
    answer(o.common, {{"task", "sizing"}, {"rows", sizing_json(rows)}}, sizing_text(rows));
    return 0;
  }
  const Launch job = launch();
  start(o.common, job);
  std::vector<Finding> all;
  const auto add = [&](std::vector<Finding> more) {
    for (Finding& f : more) all.push_back(std::move(f));
  };
  const CudaFacts cuda = cuda_facts();
  const bool card = o.device != "cpu" && cuda.built && cuda.why_not.empty();
  add(examine_cuda(cuda, o.device));
  add(examine_libraries(comm_facts(), cuda, job));
  add(examine_machine(read_machine(), job.local_size, compute_threads(), card));

  std::unique_ptr<Device> device;
  std::unique_ptr<Comm> comm;
  try {
    device = Device::open(device_of(o.device, job));
    all.push_back(examine_device(*device));
  } catch (const UsageError&) { throw; } catch (const Error& e) {
    all.push_back({.check = "device", .health = Health::fail, .text = e.what(), .advice = "--device cpu"});
  }
  if (device && job.size > 1) {
    try {
      comm = Comm::open(*device, {.timeout_seconds = o.timeout, .rendezvous = {}});
      comm->phase("csml doctor");
      add(examine_collectives(*device, *comm));
    } catch (const Error& e) {
      all.push_back({.check = "all-reduce",
                     .health = Health::fail,
                     .text = e.what(),
                     .advice = "the processes of this job cannot talk to each other"});
    }
  }
  if (!o.out.empty() && job.rank == 0) add(examine_folder(o.out, o.megabytes * 1'000'000));
  if (!o.data.empty()) add(examine_data(o.data, compute_threads(), o.seconds));

  if (!comm) return job.rank == 0 ? report(o, {to_json(all)}) : 0;
  std::vector<nlohmann::json> by_rank;
  for (const std::string& text : gather_text(*comm, *device, json_line(to_json(all))))
    by_rank.push_back(nlohmann::json::parse(text));
  int code = 0;
  for (const nlohmann::json& findings : by_rank)
    for (const nlohmann::json& f : findings) code |= f["health"] == "fail";
  if (job.rank == 0) code = report(o, by_rank);
  comm->barrier();  // a launcher ends all processes when one is gone with an exit code that is not 0
  return code;
}

}  // namespace

Command doctor_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  app.add_option("--device", o->device, "auto | cpu | cuda | cuda:N")->type_name("NAME")->capture_default_str();
  app.add_option("--out", o->out, "Where runs will be: room, and the speed of files that are flushed to disk")
      ->type_name("DIR");
  app.add_option("--data", o->data, "Images: whether they can be read, and how fast")->type_name("SPEC");
  app.add_option("--seconds", o->seconds, "How long --data is read")
      ->check(CLI::Range(0.0, 3600.0))
      ->type_name("S")
      ->capture_default_str();
  app.add_option("--megabytes", o->megabytes, "Size of the file that --out is tried with")
      ->check(CLI::Range(1, 1 << 20))
      ->type_name("MB")
      ->capture_default_str();
  app.add_option("--timeout", o->timeout, "Longest wait for another process before the end; 0: no limit")
      ->check(CLI::Range(0.0, 1e6))
      ->type_name("S")
      ->capture_default_str();
  app.add_flag("--sizing", o->sizing,
               "Instead: what 1, 8, 64 and 512 cards are expected to need, by the formulas of docs/cluster.md");
  const auto figure = [&](const char* name, double& value, const char* help) {
    app.add_option(name, value, help)->check(CLI::PositiveNumber)->type_name("X")->capture_default_str();
  };
  figure("--pairs-per-second", o->input.pairs_per_second,
         "--sizing: of one card, as csml bench --step moco measures it");
  figure("--pairs-per-core", o->input.pairs_per_core, "--sizing: of the loader, as csml bench --loader measures it");
  figure("--image-bytes", o->input.image_bytes, "--sizing: mean size of a stored image");
  add_common_options(app, o->common);
  app.footer(
      "Examples: csml doctor --out runs --data folder:DIR\n"
      "          mpirun -np 4 csml doctor --device cuda --out runs      (all processes of a job, and what is between "
      "them)\n"
      "          csml doctor --sizing --pairs-per-second 5100\n"
      "One line a check: ok | warn | fail, what was found, what to set. Exits with 1 only where something fails.");
  return [o] { return run(*o); };
}

}  // namespace csml
