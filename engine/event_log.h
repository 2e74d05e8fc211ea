// What a run tells, in the form that TensorBoard reads: scalars in an event file.
//
// A file is a sequence of TFRecords, each
//   u64 length, u32 masked crc32c of these eight bytes, `length` bytes of data, u32 masked crc32c of the data,
// little endian, masked(c) = rotate_right(c, 15) + 0xa282ead8; the data is an `Event` message in protocol buffers' wire
// format. Sources: tensorflow/core/lib/io/record_writer.h, tensorflow/core/util/event.proto, framework/summary.proto.
#pragma once

#include <condition_variable>
#include <filesystem>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <thread>

#include "engine/file.h"

namespace csml {

/// The records of lines of metrics.jsonl as EventLog writes them. Lines that are no objects with a "step" have none.
std::string event_records(std::string_view lines);

/// metrics.jsonl once more, as an event file: its lines so far when it is opened, then every line it is given. A run
/// that is resumed starts a new file with the whole history and removes those of earlier starts, so that what is there
/// agrees with metrics.jsonl, whatever was cut off it. Lines are written by a thread: write() waits for no disk. When
/// writing fails there is one warning and no further line.
class EventLog {
 public:
  /// folder: created where it is missing. Throws Error when the file cannot be made.
  EventLog(const std::filesystem::path& folder, const std::filesystem::path& metrics);
  /// Writes what is left.
  ~EventLog();
  EventLog(const EventLog&) = delete;
  EventLog& operator=(const EventLog&) = delete;

  /// The finite numbers of a line of metrics.jsonl as scalars at its "step", named KIND/KEY or, in objects,
  /// KIND/KEY/INNER, with KIND the line's "kind" or, for an event, the event's name. Truth is 1 or 0. Left out: "step",
  /// "epoch", "time", text. A line without "time" is of now.
  void write(const nlohmann::json& line);

  const std::filesystem::path& path() const { return path_; }

 private:
  void drain();

  std::filesystem::path path_;
  FileDescriptor file_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::string pending_;  // records not yet written
  bool closing_ = false;
  std::thread writer_;  // last: it uses the others
};

}  // namespace csml
