// Where a run writes to and reads from: the folder of its checkpoints and its images.
#include <sys/statfs.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <thread>

#include "apps/doctor.h"
#include "data/dataset.h"
#include "engine/file.h"

namespace csml {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr double kMB = 1e6, kGiB = 1073741824;

double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// Median seconds until a small file is whole on disk.
double small_write(const fs::path& path) {
  std::vector<double> seconds;
  for (int i = 0; i < 5; ++i) {
    const Clock::time_point start = Clock::now();
    write_text_file(path, std::string(4096, 'x'));
    seconds.push_back(since(start));
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

double large_write(const fs::path& path, int64_t bytes) {
  std::vector<char> block(1 << 20);
  for (size_t i = 0; i < block.size(); ++i) block[i] = static_cast<char>(i * 2654435761u >> 13);  // no run to compress
  const Clock::time_point start = Clock::now();
  AtomicFile file(path);
  for (int64_t left = bytes; left > 0; left -= static_cast<int64_t>(block.size()))
    file.write(block.data(), static_cast<size_t>(std::min<int64_t>(left, static_cast<int64_t>(block.size()))));
  file.commit();
  return since(start);
}

bool in_memory(const fs::path& folder) {
  constexpr auto kTmpfs = 0x01021994, kRamfs = static_cast<int>(0x858458f6);
  struct statfs s {};
  return ::statfs(folder.c_str(), &s) == 0 && (s.f_type == kTmpfs || static_cast<int>(s.f_type) == kRamfs);
}

/// The part of `folder` that exists.
fs::path existing(fs::path folder) {
  while (!folder.empty() && !fs::exists(folder) && folder != folder.parent_path()) folder = folder.parent_path();
  return folder.empty() ? "." : folder;
}

/// What a data set's place holds and the data set does not, where there is anything: a warning for files with a suffix,
/// which may be images that csml does not read.
std::vector<Finding> examine_left_out(const Dataset& data) {
  if (data.left_out().empty()) return {};
  Finding finding{.check = "data: left out", .value = data.left_out()};
  for (const auto& [reason, count] : data.left_out()) {
    finding.text += cat("{}{} {}", finding.text.empty() ? "" : ", ", count, reason);
    if (reason.starts_with('.') || reason.starts_with("images")) finding.health = Health::warn;
  }
  if (finding.health == Health::warn)
    finding.advice = "none of it is trained on: convert what are images, or rename it";
  return {finding};
}

}  // namespace

std::vector<Finding> examine_folder(const fs::path& folder, int64_t bytes) {
  const fs::path before = existing(folder);
  // Names of this process alone: the processes of a job look at one folder together.
  const fs::path probe = folder / cat("doctor-{}", Clock::now().time_since_epoch().count());
  std::vector<Finding> all;
  struct Clean {
    fs::path probe, folder, before;
    ~Clean() {
      std::error_code ignored;
      fs::remove(probe, ignored);
      for (fs::path made = folder; made != before && fs::exists(made, ignored); made = made.parent_path())
        if (!fs::remove(made, ignored)) break;  // not empty: somebody else's too
    }
  } clean{probe, folder, before};
  try {
    std::error_code failed;
    fs::create_directories(folder, failed);
    if (failed) throw Error(cat("cannot make {}: {}", folder.string(), failed.message()));
    const double small = small_write(probe), large = large_write(probe, bytes);
    const double speed = static_cast<double>(bytes) / kMB / large;
    Finding write{
        .check = "out: writing",
        .text = cat("{:.0f} MB/s of a whole file of {:.0f} MB, {:.1f} ms for a small one, each flushed to disk", speed,
                    static_cast<double>(bytes) / kMB, 1e3 * small),
        .value = {{"mb_per_second", speed}, {"small_file_ms", 1e3 * small}}};
    if (speed < 50 || small > 0.5) {
      write.health = Health::warn;
      write.advice = "a checkpoint of ResNet-50 (half a GB) takes long: a faster file system, or fewer checkpoints";
    }
    all.push_back(write);

    struct statvfs s {};
    CHECK(::statvfs(folder.c_str(), &s) == 0, "{} does not say how much room it has", folder.string());
    const double room = static_cast<double>(s.f_bavail) * static_cast<double>(s.f_frsize);
    Finding space{.check = "out: room", .text = cat("{:.1f} GiB free", room / kGiB), .value = room};
    if (room < 5 * kGiB) {
      space.health = Health::warn;
      space.advice = "room for few checkpoints of half a GiB: train.keep_checkpoints, or another --out";
    } else if (in_memory(folder)) {
      space.health = Health::warn;
      space.text += ", in memory";
      space.advice = "it is gone when the machine restarts: an --out on disk";
    }
    all.push_back(space);

    const auto written = fs::last_write_time(probe);
    const double apart = std::abs(std::chrono::duration<double>(fs::file_time_type::clock::now() - written).count());
    Finding clock{.check = "out: clock", .text = cat("{:.1f} s from the file system's", apart), .value = apart};
    if (apart > 30) {
      clock.health = Health::warn;
      clock.advice = "the file server's clock and this machine's differ: start an NTP client";
    }
    all.push_back(clock);
  } catch (const std::exception& e) {
    all.push_back({.check = "out: writing",
                   .health = Health::fail,
                   .text = e.what(),
                   .advice = "an --out that can be written to"});
  }
  return all;
}

std::vector<Finding> examine_data(const std::string& spec, int threads, double seconds) {
  std::unique_ptr<Dataset> data;
  try {
    data = open_dataset(spec);
  } catch (const std::exception& e) {
    return {{.check = "data", .health = Health::fail, .text = e.what(), .advice = "a --data SPEC that opens"}};
  }
  if (data->size() == 0)
    return {{.check = "data", .health = Health::fail, .text = "no images", .advice = "a --data SPEC with images"}};

  std::atomic<int64_t> next{0}, read{0}, bad{0};
  const auto start = Clock::now();
  const auto work = [&] {
    LoadScratch scratch;
    const auto n = static_cast<uint64_t>(data->size());
    while (true) {
      const int64_t i = next++;
      if (i > 0 && since(start) >= seconds) break;
      // Scattered over the data set, as an epoch's order is: no read-ahead helps.
      const auto at = static_cast<int64_t>(static_cast<uint64_t>(i) * 0x9e3779b97f4a7c15ull % n);
      try {
        data->view(at, scratch);
        ++read;
      } catch (const Error&) { ++bad; }
    }
  };
  std::vector<std::jthread> others;
  for (int t = 1; t < threads; ++t) others.emplace_back(work);
  work();
  for (std::jthread& t : others) t.join();
  const double rate = static_cast<double>(read) / since(start);
  const bool decodes = !data->in_memory();

  Finding opened{.check = "data", .text = data->describe(), .value = data->size()};
  Finding speed{.check = "data: decoding",
                .text = decodes ? cat("{:.0f} images/s with {} threads, {:.0f} of each, decoded whole", rate, threads,
                                      rate / threads)
                                : "nothing to decode: pixels are in memory",
                .value = {{"images_per_second", rate}, {"threads", threads}}};
  if (bad > 0) {
    const double share = static_cast<double>(bad) / static_cast<double>(bad + read);
    opened.health = read == 0 ? Health::fail : Health::warn;
    opened.text += cat(": {} of {} images that were tried cannot be read", bad.load(), bad + read);
    opened.advice = read == 0 ? "another --data"
                              : cat("a run replaces them; it stops where more than "
                                    "data.max_bad_share (0.05) of all are bad (here {:.2f})",
                                    share);
  }
  std::vector<Finding> all{opened, speed};
  for (Finding& finding : examine_left_out(*data)) all.push_back(std::move(finding));
  return all;
}

}  // namespace csml
