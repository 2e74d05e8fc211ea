// csml doctor's judgement of machines that are made up, its reading of control groups, and the sizing formulas.
#include <algorithm>

#include "apps/doctor.h"
#include "apps/short_waits.h"
#include "apps/sizing.h"

#include "tests/files.h"

using namespace csml;
namespace fs = std::filesystem;

namespace {

Machine healthy() {
  constexpr uint64_t kGiB = 1 << 30;
  Machine m;
  m.cores = m.allowed_cores = 16;
  m.memory = m.available_memory = 64 * kGiB;
  m.has_shm = true;
  m.shm = m.shm_free = 32 * kGiB;
  m.open_files = 65536;
  m.unix_time = 1.8e9;
  return m;
}

Finding finding(const std::vector<Finding>& all, const std::string& check) {
  const auto found = std::find_if(all.begin(), all.end(), [&](const Finding& f) { return f.check == check; });
  return found == all.end() ? Finding{.check = "absent"} : *found;
}

/// Health of one check after `change` has made the machine worse; every other check stays ok.
Health only(const std::string& check, const std::function<void(Machine&)>& change, int processes = 4, int threads = 4,
            bool with_card = false) {
  Machine m = healthy();
  change(m);
  const std::vector<Finding> all = examine_machine(m, processes, threads, with_card);
  for (const Finding& f : all) {
    CAPTURE(f.check);
    if (f.check != check) CHECK(f.health == Health::ok);
    CHECK(f.advice.empty() == (f.health == Health::ok));
  }
  return finding(all, check).health;
}

void put(const fs::path& path, const std::string& text) {
  fs::create_directories(path.parent_path());
  std::ofstream(path) << text;
}

}  // namespace

TEST_CASE("a healthy machine is ok in every line") {
  for (const Finding& f : examine_machine(healthy(), 4, 4, false)) {
    CAPTURE(f.check);
    CHECK(f.health == Health::ok);
  }
}

TEST_CASE("each thing that a machine lacks is named in its own line") {
  constexpr uint64_t kGiB = 1 << 30, kMiB = 1 << 20;
  CHECK(only(
            "cores", [](Machine& m) { m.allowed_cores = 1; }, 4, 1) == Health::warn);
  CHECK(only(
            "threads", [](Machine&) {}, 4, 17) == Health::warn);
  CHECK(only("threads", [](Machine& m) { m.quota_cores = 2.5; }) == Health::warn);
  CHECK(only("load", [](Machine& m) { m.load = 12; }) == Health::warn);
  CHECK(only("load", [](Machine& m) {
          m.load = 12;
          m.waits = "GOMP_SPINCOUNT=1000";
        }) == Health::ok);
  CHECK(only("load", [](Machine& m) {
          m.load = 12;
          m.waits = "OMP_WAIT_POLICY=active";
        }) == Health::warn);
  CHECK(only("memory", [](Machine& m) { m.available_memory = 6 * kGiB; }) == Health::warn);
  CHECK(only("memory", [](Machine& m) { m.memory_limit = 512 * kMiB; }) == Health::fail);
  CHECK(only("memory", [](Machine& m) { m.address_space = 8 * kGiB; }) == Health::warn);
  CHECK(only("/dev/shm", [](Machine& m) { m.shm_free = 100 * kMiB; }) == Health::warn);
  CHECK(only("/dev/shm", [](Machine& m) { m.shm_free = 63 * kMiB; }) == Health::fail);
  CHECK(only(
            "/dev/shm", [](Machine& m) { m.shm_free = 63 * kMiB; }, 1) == Health::ok);  // one process, no card
  CHECK(only("/dev/shm", [](Machine& m) { m.has_shm = false, m.shm_free = 0; }) == Health::fail);
  CHECK(only("open files", [](Machine& m) { m.open_files = 512; }) == Health::warn);
  CHECK(only("open files", [](Machine& m) { m.open_files = 64; }) == Health::fail);
  CHECK(only("open files", [](Machine& m) { m.open_files = 0; }) == Health::ok);
  CHECK(only(
            "locked memory", [](Machine& m) { m.locked_memory = 64 << 10; }, 4, 4, true) == Health::warn);
  CHECK(only("file size", [](Machine& m) { m.file_size = 64 * kMiB; }) == Health::fail);
  CHECK(only("clock", [](Machine& m) { m.unix_time = 1e9; }) == Health::warn);
  CHECK(only("switches", [](Machine& m) { m.switches = {"CSML_SYNC"}; }) == Health::warn);
}

TEST_CASE("limits of control groups of both versions, and of the groups around one") {
  const Folder folder;
  const fs::path root = folder.path;
  put(root / "proc/self/cgroup", "0::/job/step\n");
  put(root / "sys/fs/cgroup/job/cpu.max", "350000 100000\n");
  put(root / "sys/fs/cgroup/job/step/cpu.max", "max 100000\n");
  put(root / "sys/fs/cgroup/job/step/memory.max", "2147483648\n");
  put(root / "sys/fs/cgroup/job/memory.max", "max\n");
  put(root / "proc/meminfo", "MemTotal:       16000000 kB\nMemFree: 1 kB\nMemAvailable:    8000000 kB\n");
  put(root / "proc/loadavg", "1.25 1.00 0.50 1/100 42\n");
  Machine m = read_machine(root);
  CHECK(m.quota_cores == 3.5);
  CHECK(m.memory_limit == uint64_t{2} << 30);
  CHECK(m.memory == uint64_t{16000000} * 1024);
  CHECK(m.available_memory == uint64_t{8000000} * 1024);
  CHECK(m.load == 1.25);
  CHECK_FALSE(m.has_shm);

  put(root / "proc/self/cgroup", "4:memory:/a\n3:cpu,cpuacct:/b\n");
  put(root / "sys/fs/cgroup/memory/a/memory.limit_in_bytes", "1073741824\n");
  put(root / "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  put(root / "sys/fs/cgroup/cpu/b/cpu.cfs_quota_us", "150000\n");
  put(root / "sys/fs/cgroup/cpu/b/cpu.cfs_period_us", "100000\n");
  put(root / "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
  put(root / "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  m = read_machine(root);
  CHECK(m.quota_cores == 1.5);
  CHECK(m.memory_limit == uint64_t{1} << 30);
}

TEST_CASE("a folder is tried with whole files and left as it was") {
  const Folder folder;
  for (const char* name : {".", "new/folder"}) {
    const std::vector<Finding> all = examine_folder(folder.path / name, 1'000'000);
    CHECK(finding(all, "out: writing").value["mb_per_second"].get<double>() > 0);
    CHECK(finding(all, "out: room").value.get<double>() > 0);
    CHECK(finding(all, "out: clock").health == Health::ok);
    CHECK(fs::is_empty(folder.path));
  }
  put(folder.path / "file", "x");
  CHECK(finding(examine_folder(folder.path / "file/below", 1000), "out: writing").health == Health::fail);
  CHECK(finding(examine_folder("/proc/nothing", 1000), "out: writing").health == Health::fail);
}

TEST_CASE("data that cannot be read are named, good ones are timed") {
  const Folder folder;
  CHECK(finding(examine_data("folder:/nowhere", 1, 0.01), "data").health == Health::fail);
  const std::string image = "P6\n8 8\n255\n" + std::string(8 * 8 * 3, 'x');
  for (int i = 0; i < 8; ++i) put(folder.path / "images" / cat("{}.ppm", i), i == 3 ? image.substr(0, 40) : image);
  const std::vector<Finding> some = examine_data("folder:" + (folder.path / "images").string(), 2, 0.2);
  CHECK(finding(some, "data").health == Health::warn);
  CHECK(finding(some, "data: decoding").value["images_per_second"].get<double>() > 0);
  put(folder.path / "bad/0.ppm", "P6\n");
  CHECK(finding(examine_data("folder:" + (folder.path / "bad").string(), 1, 0.01), "data").health == Health::fail);
  CHECK(finding(examine_data("synthetic:shapes?limit=20&size=16", 1, 0.01), "data").health == Health::ok);
}

TEST_CASE("sizing: nothing is exposed on one card, and the formulas by hand on 16") {
  SizingInput in;
  const SizingRow one = sizing(in, 1, 256);
  CHECK(one.step == doctest::Approx(256 / 5600.0));
  CHECK(one.exposed == 0);
  CHECK(one.efficiency == 1);
  CHECK(one.hours == doctest::Approx(200 * 1281167 / 5600.0 / 3600));
  CHECK(one.cores_per_machine == doctest::Approx(5600 / 562.0));

  in.gradient_bytes = 80e6;  // ten buckets of 8e6
  in.bucket_bytes = 8e6;
  const SizingRow two = sizing(in, 16, 256);
  const double latency = 20e-6 + 10e-6;  // log2(2 machines) = 1
  const auto reduce = [&](double x) { return latency + 2 * 7 / 8.0 * x / 370e9 + 2 * 0.5 * x / 320e9; };
  const double keys = 16 * 256 * 512.0, gather = latency + 7 / 8.0 * keys / 370e9 + 0.5 * keys / 320e9;
  const double commit = gather + 2 * reduce(53120 * 4) + 2 * reduce(4);
  CHECK(two.communication == doctest::Approx(10 * reduce(8e6) + commit));
  CHECK(two.exposed == doctest::Approx(reduce(8e6) + commit));
  in.machine_bytes = 1e9;  // a reduction that backward cannot hide
  const SizingRow slow = sizing(in, 8, 256);
  const double bucket = 20e-6 + 2 * 7 / 8.0 * 8e6 / 1e9;
  CHECK(slow.exposed > 10 * bucket - 0.5 * slow.step);
  CHECK(slow.efficiency < 0.8);
}

TEST_CASE("how threads wait is told by the environment, and kept where it says something") {
  const auto with = [](const char* spins, const char* policy) {
    for (const auto& [name, value] : {std::pair{"GOMP_SPINCOUNT", spins}, std::pair{"OMP_WAIT_POLICY", policy}})
      if (value)
        ::setenv(name, value, 1);
      else
        ::unsetenv(name);
    return waits_in_force();
  };
  CHECK(with(nullptr, nullptr).empty());
  CHECK(with("1000", nullptr) == "GOMP_SPINCOUNT=1000");
  CHECK(with(nullptr, "passive") == "OMP_WAIT_POLICY=passive");
  prefer_short_waits(nullptr);  // returns: the environment speaks
  CHECK(with("77", "active") == "GOMP_SPINCOUNT=77");
}

TEST_CASE("what a data set leaves out is a line of its own, with its counts") {
  const Folder folder;
  fs::create_directories(folder.path / "cat");
  spill(folder.path / "cat" / "a.ppm", "P6 1 1 255\nabc");
  const auto left_out = [&] {
    for (const Finding& f : examine_data("folder:" + folder.path.string(), 1, 0))
      if (f.check == "data: left out") return f;
    return Finding{};
  };
  CHECK(left_out().text.empty());
  spill(folder.path / "cat" / ".hidden", "");
  CHECK(left_out().health == Health::ok);
  CHECK(left_out().text == "1 hidden");
  spill(folder.path / "cat" / "b.heic", "");
  CHECK(left_out().health == Health::warn);
  CHECK(left_out().value == nlohmann::json{{".heic", 1}, {"hidden", 1}});
}
