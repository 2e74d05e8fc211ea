#include "engine/checkpoint.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>

#include "engine/json.h"

namespace csml {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr const char* kFormat = "csml-checkpoint";
constexpr int kFormatVersion = 1;
constexpr const char* kManifest = "manifest.json";
constexpr const char* kModel = "model.safetensors";
constexpr const char* kState = "state.safetensors";
constexpr const char* kFolder = "checkpoints";
constexpr const char* kLatest = "latest";
constexpr int64_t kMostSteps = int64_t{1} << 53;  // so that counting on overflows nothing
constexpr const char* kAside = ".tmp-";
constexpr size_t kMostManifestBytes = 16 << 20;

std::string folder_name(int64_t step) { return cat("step_{:08d}", step); }

/// "step_00000120" -> 120; nothing for any other name.
std::optional<int64_t> step_of(const std::string& name) {
  constexpr size_t kPrefix = 5;
  if (!name.starts_with("step_")) return std::nullopt;
  int64_t step = 0;
  const char* end = name.data() + name.size();
  const auto [stop, error] = std::from_chars(name.data() + kPrefix, end, step);
  if (error != std::errc{} || stop != end || step < 0 || name != folder_name(step)) return std::nullopt;
  return step;
}

/// Steps of all folders that have a checkpoint's name, ascending. A folder that does not exist has none.
std::vector<int64_t> steps_in(const fs::path& folder) {
  std::vector<int64_t> steps;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, error))
    if (const auto step = step_of(entry.path().filename().string())) steps.push_back(*step);
  std::sort(steps.begin(), steps.end());
  return steps;
}

/// A manifest carries the checksum of its own text without that checksum, so that damage to it is seen too.
std::string manifest_text(json manifest) {
  manifest.erase("manifest_xxh3_128");
  std::string text;
  try {
    text = manifest.dump();
  } catch (const json::exception&) { throw Error("a checkpoint's metadata is not valid UTF-8"); }
  manifest["manifest_xxh3_128"] = digest_of(text.data(), text.size()).hex;
  return manifest.dump(2) + "\n";
}

json read_manifest(const fs::path& path) {
  const std::string text = read_text_file(path, kMostManifestBytes);
  // Printing a document recurses, so its depth is bounded while it is read.
  const auto shallow = [&](int depth, json::parse_event_t, json&) {
    CHECK(depth <= 64, "{}: nested too deeply; the file is damaged", path.string());
    return true;
  };
  const json manifest = json::parse(text, shallow, false);
  CHECK(manifest.is_object(), "{}: not valid JSON; the file is damaged", path.string());
  CHECK(manifest.value("format", json()) == kFormat, "{}: not the manifest of a checkpoint", path.string());
  const json version = manifest.value("version", json());
  CHECK(version == kFormatVersion, "{}: format version {}, this program reads {}", path.string(), version.dump(),
        kFormatVersion);
  CHECK(manifest_text(manifest) == text, "{}: does not match its own checksum; the file is damaged", path.string());
  return manifest;
}

/// The cheap part of verification: a good manifest and files of the right sizes.
bool looks_complete(const fs::path& folder, bool* milestone) {
  try {
    const json manifest = read_manifest(folder / kManifest);
    *milestone = manifest.at("milestone").get<bool>();
    for (const char* name : {kModel, kState})
      if (fs::file_size(folder / name) != whole_number<uint64_t>(manifest.at("files").at(name).at("bytes")))
        return false;
    return true;
  } catch (const std::exception&) { return false; }
}

/// The folder that RUN/latest names, when it names one of this run.
std::optional<int64_t> latest_step(const fs::path& run, const Warn& warn) {
  const fs::path path = run / kLatest;
  std::error_code error;
  if (!fs::exists(path, error)) return std::nullopt;
  try {
    std::string text = read_text_file(path, 4096);
    while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.pop_back();
    if (const auto step = step_of(fs::path(text).filename().string())) return step;
    warn(cat("{}: does not name a checkpoint; the newest good one is used", path.string()));
  } catch (const Error& e) { warn(cat("{}; the newest good checkpoint is used", e.what())); }
  return std::nullopt;
}

/// Swaps two names at once; false where the file system cannot.
bool exchange(const fs::path& a, const fs::path& b) {
  return ::renameat2(AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE) == 0;
}

void remove_quietly(const fs::path& path) {
  std::error_code error;
  fs::remove_all(path, error);
}

void write_aside(const CheckpointContent& content, const fs::path& aside) {
  if (::mkdir(aside.c_str(), 0777) != 0) throw_errno("create folder", aside);
  json files = json::object();
  const auto add = [&](const char* name, const FileDigest& digest) {
    files[name] = {{"bytes", digest.bytes}, {"xxh3_128", digest.hex}};
  };
  add(kModel, write_safetensors(aside / kModel, content.model, content.model_metadata));
  add(kState, write_safetensors(aside / kState, content.state));
  const json manifest = {
      {"format", kFormat}, {"version", kFormatVersion},      {"step", content.step}, {"epoch", content.epoch},
      {"files", files},    {"milestone", content.milestone}, {"user", content.user}};
  write_text_file(aside / kManifest, manifest_text(manifest));
}

void put_in_place(const fs::path& aside, const fs::path& folder) {
  if (!fs::exists(folder)) {
    if (::rename(aside.c_str(), folder.c_str()) != 0) throw_errno("rename a checkpoint into place as", folder);
  } else if (exchange(aside, folder)) {
    remove_quietly(aside);
  } else {
    const fs::path old = aside.string() + "-old";
    if (::rename(folder.c_str(), old.c_str()) != 0) throw_errno("replace", folder);
    if (::rename(aside.c_str(), folder.c_str()) != 0) {
      const int code = errno;
      ::rename(old.c_str(), folder.c_str());
      errno = code;
      throw_errno("rename a checkpoint into place as", folder);
    }
    remove_quietly(old);
  }
  sync_directory(folder.parent_path());
}

}  // namespace

Checkpoint open_checkpoint(const fs::path& folder) {
  const json manifest = read_manifest(folder / kManifest);
  Checkpoint checkpoint{.folder = folder, .user = json::object()};
  json files;
  try {
    checkpoint.step = whole_number<int64_t>(manifest.at("step"));
    checkpoint.epoch = whole_number<int64_t>(manifest.at("epoch"));
    if (checkpoint.step < 0 || checkpoint.step > kMostSteps || checkpoint.epoch < 0 || checkpoint.epoch > kMostSteps)
      throw Error(cat("{}: step {} or epoch {} is outside 0 to {}; the file is damaged", (folder / kManifest).string(),
                      checkpoint.step, checkpoint.epoch, kMostSteps));
    checkpoint.milestone = manifest.at("milestone").get<bool>();
    checkpoint.user = manifest.at("user");
    files = manifest.at("files");
    for (const char* name : {kModel, kState}) {
      const FileDigest expected{whole_number<uint64_t>(files.at(name).at("bytes")),
                                files.at(name).at("xxh3_128").get<std::string>()};
      const fs::path path = folder / name;
      std::error_code error;
      const uint64_t bytes = fs::file_size(path, error);
      CHECK(!error, "{}: {}", path.string(), error.message());
      CHECK(bytes == expected.bytes, "{}: {} bytes, the manifest says {}; the file is damaged", path.string(), bytes,
            expected.bytes);
      CHECK(digest_of(path) == expected, "{}: does not match its checksum; the file is damaged", path.string());
    }
  } catch (const json::exception&) {
    throw Error(cat("{}: an entry is missing or of the wrong type", (folder / kManifest).string()));
  }
  if (!checkpoint.user.is_object())
    throw Error(cat("{}: an entry is missing or of the wrong type", (folder / kManifest).string()));
  checkpoint.model();
  checkpoint.state();
  return checkpoint;
}

std::optional<Checkpoint> newest_checkpoint(const fs::path& run, const Warn& warn, int64_t most_steps) {
  std::vector<int64_t> order = steps_in(run / kFolder);
  std::reverse(order.begin(), order.end());
  // Checkpoints of more steps than `latest` belong to a future that was left when the run went back.
  if (const auto latest = latest_step(run, warn)) {
    if (std::find(order.begin(), order.end(), *latest) == order.end())
      warn(cat("{} is missing, though {} names it", (run / kFolder / folder_name(*latest)).string(),
               (run / kLatest).string()));
    std::stable_partition(order.begin(), order.end(), [&](int64_t step) { return step <= *latest; });
  }
  for (int64_t step : order) {
    if (step > most_steps) continue;
    const fs::path folder = run / kFolder / folder_name(step);
    try {
      Checkpoint checkpoint = open_checkpoint(folder);
      CHECK(checkpoint.step == step, "the manifest is that of step {}", checkpoint.step);
      return checkpoint;
    } catch (const Error& e) {
      warn(cat("checkpoint {} is refused and the one before is used: {}", folder.string(), e.what()));
    }
  }
  return std::nullopt;
}

void write_checkpoint(const fs::path& folder, const CheckpointContent& content) {
  const fs::path aside = folder.string() + cat("{}{}", kAside, ::getpid());
  remove_quietly(aside);
  try {
    write_aside(content, aside);
    open_checkpoint(aside);
    put_in_place(aside, folder);
  } catch (...) {
    remove_quietly(aside);
    throw;
  }
}

CheckpointStore::CheckpointStore(fs::path run, Options options)
    : run_(std::move(run)), folder_(run_ / kFolder), options_(std::move(options)) {
  CHECK(options_.keep_last >= 1, "at least 1 checkpoint must be kept, got {}", options_.keep_last);
  std::error_code error;
  fs::create_directories(folder_, error);
  if (error) {
    errno = error.value();
    throw_errno("create folder", folder_);
  }
  lock_ = FileDescriptor(::open(folder_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!lock_) throw_errno("open", folder_);
  // File systems without locks are let through: the lock is a help, not a condition.
  if (::flock(lock_.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
    throw Error(cat("{} is in use by another process; wait for it, stop it, or choose another output folder",
                    folder_.string()));
  for (const fs::path& place : {run_, folder_}) {
    std::vector<fs::path> stale;
    for (const fs::directory_entry& entry : fs::directory_iterator(place)) {
      const std::string name = entry.path().filename().string();
      const bool ours = place == folder_ ? name.starts_with("step_") : name.starts_with(kLatest);
      if (ours && name.find(kAside) != std::string::npos) stale.push_back(entry.path());
    }
    for (const fs::path& path : stale) remove_quietly(path);
  }
}

fs::path CheckpointStore::save(const CheckpointContent& content) {
  if (content.step < 0 || content.step > kMostSteps || content.epoch < 0 || content.epoch > kMostSteps)
    throw Error(
        cat("a checkpoint of step {} and epoch {}: both must be 0 to {}", content.step, content.epoch, kMostSteps));
  const std::string name = folder_name(content.step);
  const fs::path folder = folder_ / name;
  write_checkpoint(folder, content);
  write_text_file(run_ / kLatest, cat("{}/{}\n", kFolder, name));
  rotate(content.step);
  return folder;
}

void CheckpointStore::rotate(int64_t newest_step) const {
  std::vector<int64_t> steps = steps_in(folder_);
  std::erase_if(steps, [&](int64_t step) { return step > newest_step; });
  int kept = 0;
  for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
    const fs::path folder = folder_ / folder_name(*step);
    bool milestone = false;
    const bool complete = looks_complete(folder, &milestone);
    if (milestone) continue;
    if (kept < options_.keep_last) {
      kept += complete;  // a damaged one does not take a good one's place
      continue;
    }
    // Renamed first: a deletion that is interrupted leaves no half checkpoint under a checkpoint's name.
    const fs::path gone = folder.string() + cat("{}{}", kAside, ::getpid());
    if (::rename(folder.c_str(), gone.c_str()) != 0) {
      options_.warn(cat("cannot delete the old checkpoint {}: {}", folder.string(), std::strerror(errno)));
      continue;
    }
    remove_quietly(gone);
  }
}

}  // namespace csml
