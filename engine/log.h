// What a run tells: metrics.jsonl for programs, lines and a progress display on standard error for people.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "engine/file.h"

namespace csml {

/// JSON lines, one object per line, appended with one write each: a reader never sees half a line, and a crash leaves
/// at most one torn line, which the next opening removes. One writer per file (of several processes, rank 0).
class MetricsLog {
 public:
  /// Creates the file or goes on with it. Throws Error when it cannot be written.
  explicit MetricsLog(std::filesystem::path path);

  /// Appends `line` (an object) with "time" in seconds since 1970 added. NaN and infinity become null.
  void write(nlohmann::json line);

  /// Drops the lines whose "step" is above `step` (and lines that are no objects with a step), so that a resumed run
  /// does not tell the same steps twice. Returns how many were dropped.
  int64_t truncate_after_step(int64_t step);

  const std::filesystem::path& path() const { return path_; }

 private:
  void open();

  std::filesystem::path path_;
  FileDescriptor file_;
};

/// Set once at start: `rank` of `size` processes (prefix "[rank r] " when size > 1), and whether --quiet was given.
void log_configure(int rank, int size, bool quiet);

/// One line on standard error, on rank 0 only; nothing under --quiet.
void log_info(const std::string& line);
/// One line on standard error that starts with "warning: ", on every rank, under --quiet too.
void log_warn(const std::string& line);

/// "0:42", "12:03" or "3:04:05" (hours, minutes, seconds).
std::string duration_text(double seconds);

/// Progress on standard error with rate and time left: one line redrawn on a terminal, a new line about every ten
/// seconds elsewhere. Shows nothing under --quiet and on ranks other than 0. One is alive at a time.
class Progress {
 public:
  /// `total` in `unit` ("images", "steps"); `start` of them were done before (a resumed run), which the rate leaves
  /// out.
  Progress(std::string label, int64_t total, std::string unit, int64_t start = 0);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// `done` so far, and free text at the line's end ("loss 5.12"). Cheap enough for every step.
  void update(int64_t done, const std::string& text = "");
  /// The last `seconds` were no progress and will not come again at this rate (an evaluation): rate and estimate leave them
  /// out.
  void leave_out(double seconds);
  /// Draws the last state and ends the line. The destructor ends the line without drawing.
  void finish();

  /// The line as it would be drawn `seconds` after the start. On `columns` columns (0: any number) it leaves out what
  /// matters least until it fits: label, rate, percent, unit, then the end of the text.
  std::string line(double seconds, int columns = 0) const;

 private:
  using Clock = std::chrono::steady_clock;
  struct Mark {
    double seconds;
    int64_t done;
  };

  double seconds() const;
  void draw();

  std::string label_, unit_, text_;
  int64_t total_, done_;
  Clock::time_point started_ = Clock::now();
  std::deque<Mark> marks_;  // of the last half minute: the rate is that of the present
  double drawn_ = 0;
  bool active_, terminal_;
};

}  // namespace csml
