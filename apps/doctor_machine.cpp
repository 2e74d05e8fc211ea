// Cores, memory, limits and clock, as /proc, /sys and the environment have them.
#include <sched.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "apps/doctor.h"
#include "apps/short_waits.h"

namespace csml {
namespace {

namespace fs = std::filesystem;

constexpr double kMiB = 1048576, kGiB = 1073741824;

std::string bytes_text(uint64_t bytes) {
  const double b = static_cast<double>(bytes);
  return b >= kGiB ? cat("{:.1f} GiB", b / kGiB) : cat("{:.0f} MiB", b / kMiB);
}

std::string first_line(const fs::path& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

/// The value behind "key" at the start of a line of /proc/meminfo, /proc/cpuinfo; empty: none.
std::string field(const fs::path& path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos || !line.starts_with(key)) continue;
    const size_t begin = line.find_first_not_of(" \t", colon + 1);
    return begin == std::string::npos ? "" : line.substr(begin);
  }
  return "";
}

uint64_t kib_field(const fs::path& path, const std::string& key) {
  return std::strtoull(field(path, key).c_str(), nullptr, 10) * 1024;
}

/// The folders of this process's control group, from its own to the root's: a limit of any of them binds.
std::vector<fs::path> control_groups(const fs::path& root, const std::string& controller) {
  std::vector<fs::path> folders;
  std::ifstream file(root / "proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1), path = line.substr(second + 1);
    const bool unified = controllers.empty();
    if (!unified && controllers.find(controller) == std::string::npos) continue;
    const fs::path mount = root / "sys/fs/cgroup" / (unified ? "" : controller);
    for (fs::path inner = fs::path(path).relative_path();; inner = inner.parent_path()) {
      folders.push_back(mount / inner);
      if (inner.empty()) break;
    }
  }
  return folders;
}

uint64_t memory_limit(const fs::path& root) {
  constexpr uint64_t kNone = uint64_t{1} << 60;  // version 1 says "no limit" with a number near 2^63
  uint64_t limit = kNone;
  for (const fs::path& folder : control_groups(root, "memory"))
    for (const char* name : {"memory.max", "memory.limit_in_bytes"})
      if (const std::string text = first_line(folder / name); !text.empty() && text != "max")
        limit = std::min<uint64_t>(limit, std::strtoull(text.c_str(), nullptr, 10));
  return limit == kNone ? 0 : limit;
}

uint64_t limit_of(__rlimit_resource resource) {
  struct rlimit limit {};
  return getrlimit(resource, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY ? limit.rlim_cur : 0;
}

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

}  // namespace

double quota_cores(const fs::path& root) {
  double cores = 0;
  const auto take = [&](double quota, double period) {
    if (quota > 0 && period > 0) cores = cores > 0 ? std::min(cores, quota / period) : quota / period;
  };
  for (const fs::path& folder : control_groups(root, "cpu")) {
    std::istringstream both(first_line(folder / "cpu.max"));
    std::string quota;
    double period = 0;
    if (both >> quota >> period && quota != "max") take(std::atof(quota.c_str()), period);
    take(std::atof(first_line(folder / "cpu.cfs_quota_us").c_str()),
         std::atof(first_line(folder / "cpu.cfs_period_us").c_str()));
  }
  return cores;
}

Machine read_machine(const fs::path& root) {
  Machine m;
  m.processor = field(root / "proc/cpuinfo", "model name");
  m.cores = static_cast<int>(std::max<long>(1, ::sysconf(_SC_NPROCESSORS_ONLN)));
  cpu_set_t set;
  CPU_ZERO(&set);
  m.allowed_cores = sched_getaffinity(0, sizeof set, &set) == 0 ? std::max(1, CPU_COUNT(&set)) : m.cores;
  m.quota_cores = quota_cores(root);
  m.load = std::atof(first_line(root / "proc/loadavg").c_str());
  m.memory = kib_field(root / "proc/meminfo", "MemTotal");
  m.available_memory = kib_field(root / "proc/meminfo", "MemAvailable");
  m.memory_limit = memory_limit(root);
  struct statvfs shm {};
  m.has_shm = ::statvfs((root / "dev/shm").c_str(), &shm) == 0;
  if (m.has_shm) {
    m.shm = uint64_t{shm.f_blocks} * shm.f_frsize;
    m.shm_free = uint64_t{shm.f_bavail} * shm.f_frsize;
  }
  m.open_files = limit_of(RLIMIT_NOFILE);
  m.locked_memory = limit_of(RLIMIT_MEMLOCK);
  m.file_size = limit_of(RLIMIT_FSIZE);
  m.address_space = limit_of(RLIMIT_AS);
  m.omp_threads = environment("OMP_NUM_THREADS");
  m.waits = waits_in_force();
  for (const char* name : {"CSML_EAGER", "CSML_NAN", "CSML_SYNC", "CSML_DETERMINISTIC", "CSML_CUDA_PLANS"})
    if (environment(name) == "1") m.switches.emplace_back(name);
  m.unix_time = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  return m;
}

std::vector<Finding> examine_machine(const Machine& m, int processes, int threads, bool with_card) {
  std::vector<Finding> all;
  const auto say = [&](Finding f) { all.push_back(std::move(f)); };
  const bool many = processes > 1;

  double usable = m.allowed_cores;
  if (m.quota_cores > 0) usable = std::min(usable, m.quota_cores);
  Finding cores{.check = "cores",
                .text = cat("{} of {}{}{}", m.allowed_cores, m.cores,
                            m.quota_cores > 0 ? cat(", {:.1f} by the control group", m.quota_cores) : "",
                            m.processor.empty() ? "" : ", " + m.processor),
                .value = usable};
  if (m.allowed_cores == 1 && m.cores > 1) {
    cores.health = Health::warn;
    cores.advice = "this process is bound to one core: mpirun --bind-to none, or --map-by slot:PE=N --bind-to core";
  }
  say(cores);

  Finding compute{.check = "threads",
                  .text = cat("{} compute threads{}{}", threads,
                              m.omp_threads.empty() ? "" : cat(" (OMP_NUM_THREADS={})", m.omp_threads),
                              m.waits.empty() ? "" : cat(", which wait by {}", m.waits)),
                  .value = threads};
  if (threads > std::ceil(usable)) {
    compute.health = Health::warn;
    compute.advice =
        cat("more than the {:.0f} cores to be had, and threads that wait for each other starve: set "
            "OMP_NUM_THREADS={}",
            usable, std::max(1, static_cast<int>(usable / processes)));
  }
  say(compute);

  Finding load{.check = "load", .text = cat("{:.1f} runnable threads in the last minute", m.load), .value = m.load};
  if (m.load > 0.5 * m.cores) load.text += " (other work shares this machine: read no timings)";
  const bool spins = m.waits.empty() || m.waits == "OMP_WAIT_POLICY=active";
  if (m.load > 0.5 * m.cores && spins) {
    load.health = Health::warn;
    load.advice = "unset OMP_WAIT_POLICY: threads that wait by spinning starve their neighbours";
  }
  say(load);

  const uint64_t available = m.memory_limit > 0 ? std::min(m.available_memory, m.memory_limit) : m.available_memory;
  const uint64_t each = available / static_cast<uint64_t>(std::max(1, processes));
  Finding memory{.check = "memory",
                 .text = cat("{} available of {}{}{}", bytes_text(m.available_memory), bytes_text(m.memory),
                             m.memory_limit > 0 ? cat(", control group limit {}", bytes_text(m.memory_limit)) : "",
                             m.address_space > 0 ? cat(", ulimit -v {}", bytes_text(m.address_space)) : ""),
                 .value = each};
  if (each < 2 * kGiB) {
    memory.health = each < kGiB / 4 ? Health::fail : Health::warn;
    memory.advice = cat("{} for each process: fewer processes, a smaller batch or a higher limit", bytes_text(each));
  } else if (m.address_space > 0) {
    memory.health = Health::warn;
    memory.advice = "libraries reserve far more addresses than they use: ulimit -v unlimited";
  }
  say(memory);

  Finding shm{.check = "/dev/shm",
              .text = m.has_shm ? cat("{} free of {}", bytes_text(m.shm_free), bytes_text(m.shm)) : "absent",
              .value = m.shm_free};
  if (m.shm_free < kGiB) {
    const bool needed = many || with_card;
    shm.health = needed ? (m.shm_free < 64 * kMiB ? Health::fail : Health::warn) : Health::ok;
    if (needed) shm.advice = "MPI and NCCL exchange through it: start the container with --shm-size=8g (or --ipc=host)";
  }
  say(shm);

  Finding files{.check = "open files",
                .text = m.open_files == 0 ? "no limit" : cat("{} (ulimit -n)", m.open_files),
                .value = m.open_files};
  if (m.open_files > 0 && m.open_files < 1024) {
    files.health = m.open_files < 128 ? Health::fail : Health::warn;
    files.advice = "loader, checkpoints and sockets between processes need more: ulimit -n 65536";
  }
  say(files);

  if (with_card && many) {
    Finding locked{.check = "locked memory",
                   .text = m.locked_memory == 0 ? "no limit" : cat("{} (ulimit -l)", bytes_text(m.locked_memory)),
                   .value = m.locked_memory};
    if (m.locked_memory > 0) {
      locked.health = Health::warn;
      locked.advice =
          "InfiniBand registers memory by locking it: ulimit -l unlimited (under Slurm: slurmd's own limit)";
    }
    say(locked);
  }
  if (m.file_size > 0)
    say({.check = "file size",
         .health = m.file_size < kGiB ? Health::fail : Health::warn,
         .text = cat("files end at {} (ulimit -f)", bytes_text(m.file_size)),
         .advice = "a checkpoint of ResNet-50 is about half a GiB: ulimit -f unlimited",
         .value = m.file_size});

  Finding clock{.check = "clock", .text = cat("{:.0f} s since 1970", m.unix_time), .value = m.unix_time};
  constexpr double k2024 = 1704067200;
  if (m.unix_time < k2024) {
    clock.health = Health::warn;
    clock.advice = "the clock is wrong: times in logs and names of files will be; set it, or start an NTP client";
  }
  say(clock);

  if (!m.switches.empty())
    say({.check = "switches",
         .health = Health::warn,
         .text = cat("{}=1 in the environment", fmt::join(m.switches, "=1, ")),
         .advice = "they are for looking for mistakes and cost time: unset them for a run",
         .value = m.switches});
  return all;
}

}  // namespace csml
