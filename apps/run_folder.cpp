#include "apps/run_folder.h"

#include <sys/utsname.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <set>
#include <thread>

#include "apps/command.h"
#include "engine/checkpoint.h"
#include "version.h"

namespace csml {
namespace fs = std::filesystem;
namespace {

constexpr size_t kMostTextBytes = 1 << 20;
const std::vector<std::string> kRunFiles{
    "config.toml", "command.txt",      "environment.json", "metrics.jsonl", "checkpoints", "latest",   "captures",
    "tensorboard", "bad_images.jsonl", "report.html",      "eval",          "best",        "best.part"};

/// Keys that may differ between a run and its continuation. data.train is among them because the data's fingerprint is
/// compared instead.
const std::set<std::string> kHarmless{"data.train",
                                      "data.test",
                                      "data.workers",
                                      "data.prefetch",
                                      "data.max_bad_share",
                                      "method.bn_sync",
                                      "train.accumulate",
                                      "train.threads",
                                      "train.device",
                                      "train.log_every_steps",
                                      "train.checkpoint_every_steps",
                                      "train.checkpoint_every_epochs",
                                      "train.milestone_every_epochs",
                                      "train.keep_checkpoints",
                                      "train.checkpoint_retry_seconds",
                                      "train.max_steps",
                                      "train.max_hours",
                                      "train.stop_seconds",
                                      "train.max_non_finite_steps",
                                      "train.captured_steps",
                                      "eval.knn_every_epochs",
                                      "eval.knn_k",
                                      "eval.knn_temperature",
                                      "eval.knn_train_limit",
                                      "eval.knn_test_limit",
                                      "eval.batch_size",
                                      "comm.bucket_mib",
                                      "comm.timeout_seconds"};

nlohmann::json config_of(const fs::path& folder) {
  if (fs::exists(folder / "manifest.json")) {
    const Checkpoint checkpoint = open_checkpoint(folder);
    if (!checkpoint.user.contains("config")) throw Error(cat("{} holds no configuration", folder.string()));
    return to_json(config_from_json(checkpoint.user["config"]));
  }
  if (!fs::exists(folder / "config.toml"))
    throw Error(cat("{} holds parts of a run but no config.toml; give another --out, or --overwrite to start anew",
                    folder.string()));
  ConfigBuilder builder;
  builder.add_file(folder / "config.toml");
  return to_json(builder.build().config);
}

std::string cpu_model() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.starts_with("model name")) return line.substr(std::min(line.find(':') + 2, line.size()));
  return "unknown";
}

int64_t memory_bytes() { return int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGE_SIZE); }

}  // namespace

bool holds_run(const fs::path& folder) {
  std::error_code ignored;
  for (const char* name : {"config.toml", "metrics.jsonl", "checkpoints"})
    if (fs::exists(folder / name, ignored)) return true;
  return false;
}

bool is_start_without_training(const fs::path& folder) {
  std::error_code error;
  for (const char* name : {"config.toml", "command.txt", "environment.json"})
    if (!fs::is_regular_file(folder / name, error)) return false;
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(folder / "checkpoints", error))
    if (entry.path().extension() == ".safetensors") return false;
  if (!fs::exists(folder / "metrics.jsonl", error)) return true;
  if (!fs::is_regular_file(folder / "metrics.jsonl", error) ||
      fs::file_size(folder / "metrics.jsonl", error) > kMostTextBytes)
    return false;
  std::ifstream metrics(folder / "metrics.jsonl");
  for (std::string line; std::getline(metrics, line);)
    if (line.find("\"kind\":\"event\"") == std::string::npos && line.find("\"kind\":\"eval\"") == std::string::npos)
      return false;
  return true;
}

void clear_run(const fs::path& folder) {
  for (const std::string& name : kRunFiles) {
    std::error_code error;
    fs::remove_all(folder / name, error);
    if (error) throw Error(cat("cannot remove {}: {}", (folder / name).string(), error.message()));
  }
}

void check_resumable(const fs::path& folder, const Config& config) {
  const nlohmann::json before = config_of(folder), now = to_json(config);
  for (const auto& [section, keys] : now.items()) {
    for (const auto& [name, value] : keys.items()) {
      const std::string key = section + "." + name;
      if (kHarmless.contains(key) || before[section][name] == value) continue;
      throw Error(cat("{} holds a run with {} = {}, asked is {}; give another --out, or --overwrite to start anew",
                      folder.string(), key, before[section][name].dump(), value.dump()));
    }
  }
}

std::string shell_line(const std::vector<std::string>& arguments) {
  constexpr const char* kPlain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+=.,:/@%";
  std::string line;
  for (const std::string& argument : arguments) {
    if (!line.empty()) line += ' ';
    if (!argument.empty() && argument.find_first_not_of(kPlain) == std::string::npos) {
      line += argument;
      continue;
    }
    line += '\'';
    for (char c : argument) line += c == '\'' ? std::string("'\\''") : std::string(1, c);
    line += '\'';
  }
  return line;
}

void describe_run(const fs::path& folder, const ResolvedConfig& resolved, const std::vector<std::string>& arguments,
                  const Device& device, int processes, const Dataset& train) {
  std::error_code error;
  if (fs::exists(folder, error) && !fs::is_directory(folder, error))
    throw Error(cat("--out {} is a file; give a folder", folder.string()));
  fs::create_directories(folder, error);
  if (error) throw Error(cat("cannot create the folder {}: {}", folder.string(), error.message()));

  write_text_file(folder / "config.toml", config_toml(resolved));
  const fs::path command = folder / "command.txt";
  const std::string before = fs::exists(command, error) ? read_text_file(command, kMostTextBytes) : "";
  write_text_file(command, before + shell_line(arguments) + "\n");

  utsname system{};
  uname(&system);
  const nlohmann::json environment{
      {"version", kVersion},
      {"commit", kCommit},
      {"compiler", kCompiler},
      {"build_type", kBuildType},
      {"device", device.name()},
      {"processes", processes},
      {"threads", compute_threads()},
      {"cpu", cpu_model()},
      {"cores", std::thread::hardware_concurrency()},
      {"memory_bytes", memory_bytes()},
      {"host", system.nodename},
      {"system", cat("{} {} {}", system.sysname, system.release, system.machine)},
      {"started",
       std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count()},
      {"data", train.describe()},
      {"data_fingerprint", cat("{:016x}", train.fingerprint())}};
  write_text_file(folder / "environment.json",
                  environment.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

}  // namespace csml
