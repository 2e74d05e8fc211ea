// RunLog: what a run tells of itself, never what it computes: metrics.jsonl, TensorBoard's event file and
// bad_images.jsonl, kept by rank 0.
#pragma once

#include <filesystem>
#include <functional>
#include <mutex>
#include <optional>
#include <set>
#include <string>

#include "csml/training/run_state.h"
#include "engine/event_log.h"
#include "engine/log.h"

namespace csml {

/// The files that bad_images.jsonl names; none where it is absent. Lines that are no object with a text "path" are left
/// out and told to `warn` in one line, with the number of the first.
std::set<std::string> bad_paths_in(const std::filesystem::path& file,
                                   const std::function<void(const std::string& line)>& warn);

class RunLog {
 public:
  /// `at`: the position that lines are told at. Goes on with the files of `out`, which the other ranks do not touch.
  RunLog(const std::filesystem::path& out, Device& device, Comm& comm, const Position& at);

  /// A line of metrics.jsonl, with step and epoch of `at`. One that cannot be written is a warning: training goes on.
  void write(nlohmann::json line, const Position& at);
  void write(nlohmann::json line) { write(std::move(line), at_); }
  void event(const std::string& name, const std::string& text);
  /// Drops what was told of later steps.
  void drop_after(int64_t step);
  /// From here on, the position being known, lines go into TensorBoard's event file too.
  void begin_events();

  /// Names each unreadable image once, from any thread.
  BadImageCallback on_bad_image();
  /// What the other processes met, told to rank 0; a collective.
  void share_bad_images();
  /// Distinct unreadable images; those of the other processes as of the last share_bad_images().
  int64_t bad_images(const Loader& loader) const;

 private:
  void write_bad_image(const nlohmann::json& line);

  Device& device_;
  Comm& comm_;
  const std::filesystem::path out_;
  const Position& at_;
  std::optional<MetricsLog> metrics_, bad_images_;
  std::optional<EventLog> events_;                          // metrics_ once more
  mutable std::mutex bad_mutex_;                            // a loader's threads find bad images while steps go on
  std::set<std::string> bad_paths_;                         // known here
  nlohmann::json bad_unwritten_ = nlohmann::json::array();  // met here since the last share_bad_images()
};

}  // namespace csml
