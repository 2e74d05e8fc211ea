// Checkpoints of a run: folders that are complete and checksummed before they get their name.
//   RUN/checkpoints/step_00012000/{model.safetensors, state.safetensors, manifest.json}
//   RUN/latest     text file that names the newest checkpoint, relative to RUN
// Damage (a file cut off, changed or missing) is detected by size and XXH3-128; the checkpoint before is then used.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/safetensors.h"

namespace csml {

/// What a checkpoint stores. Arrays are in host memory and are only read.
struct CheckpointContent {
  int64_t step = 0;                                // optimizer steps done
  int64_t epoch = 0;                               // epochs finished
  std::vector<HostArray> model = {};               // what evaluation and export need
  std::vector<HostArray> state = {};               // what only resuming needs
  Metadata model_metadata = {};                    // written into model.safetensors
  nlohmann::json user = nlohmann::json::object();  // configuration, fingerprints, …
  bool milestone = false;                          // never deleted by rotation
};

/// A checkpoint on disk whose checksums were verified.
struct Checkpoint {
  std::filesystem::path folder;
  int64_t step = 0;
  int64_t epoch = 0;
  bool milestone = false;
  nlohmann::json user;

  SafetensorsFile model() const { return SafetensorsFile::open(folder / "model.safetensors"); }
  SafetensorsFile state() const { return SafetensorsFile::open(folder / "state.safetensors"); }
};

/// Receives one line about something that was not as it should be.
using Warn = std::function<void(const std::string&)>;

/// Verifies one checkpoint folder: manifest, sizes, checksums, both headers. Throws Error that names what is wrong.
Checkpoint open_checkpoint(const std::filesystem::path& folder);

/// The newest good checkpoint of a run of at most so many steps, for readers: changes nothing on disk. Tried in turn:
/// the one that `latest` names, those of fewer steps, then those of more. Each that does not verify goes to `warn` by
/// name. Nothing when the run has none that is good.
std::optional<Checkpoint> newest_checkpoint(const std::filesystem::path& run, const Warn& warn,
                                            int64_t most_steps = std::numeric_limits<int64_t>::max());

/// Writes a checkpoint folder aside, flushes it to disk, verifies it and renames it into place, replacing one that is
/// there. Throws Error (full disk, no permission, …); then nothing partial stays behind.
void write_checkpoint(const std::filesystem::path& folder, const CheckpointContent& content);

/// The one writer of a run's checkpoints (of several processes, rank 0). Holds a lock on the folder while it lives.
class CheckpointStore {
 public:
  struct Options {
    int keep_last = 3;  // milestones come on top; at least 1
    Warn warn = [](const std::string&) {};
  };

  /// Creates RUN/checkpoints and removes what interrupted writers left there. Throws Error when the folder cannot be
  /// written or another process is writing to it.
  CheckpointStore(std::filesystem::path run, Options options);

  /// write_checkpoint(), then points `latest` to it; only then deletes those that are neither milestones nor among the
  /// last `keep_last` up to this step. Throws Error; then older checkpoints are untouched. Returns the folder.
  std::filesystem::path save(const CheckpointContent& content);

  /// newest_checkpoint() of this run.
  std::optional<Checkpoint> load_newest() const { return newest_checkpoint(run_, options_.warn); }

 private:
  void rotate(int64_t newest_step) const;

  std::filesystem::path run_, folder_;
  Options options_;
  FileDescriptor lock_;
};

}  // namespace csml
