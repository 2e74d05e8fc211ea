// Timeline: when the pieces of steps ran, in Chrome's trace format (chrome://tracing, ui.perfetto.dev).
#pragma once

#include <chrono>
#include <filesystem>
#include <string>
#include <vector>

namespace csml {

/// Filled by backward passes (engine/var.cpp), gradient buckets and communicators of the device it is given to
/// (Device::set_timeline), through host calls, so that replays of a recorded step are seen too. On a device that runs
/// beside the host, host calls would stop it: there it stays empty.
class Timeline {
 public:
  enum class Track { passes, compute, buckets, communication, waiting };
  struct Span {
    Track track;
    std::string name;
    double begin, end;  // seconds since this timeline was made; equal: an instant
  };

  /// rank names the process in the trace; further spans than `most` are counted, not kept.
  explicit Timeline(int rank = 0, size_t most = 200'000) : rank_(rank), most_(most) {}

  double now() const;
  /// From `begin` (what now() said then) to now.
  void add(Track track, std::string name, double begin) { add({track, std::move(name), begin, now()}); }
  void add(Span span);
  const std::vector<Span>& spans() const { return spans_; }

  /// Of the reductions that ran ahead: seconds from the start of each to when it was seen to be done, overlaps counted
  /// once; and the part of them in which nothing was computed. share = exposed / whole, 0 without any.
  struct Communication {
    double whole = 0, exposed = 0, share = 0;
  };
  Communication communication() const;

  /// The trace as one JSON object. Throws Error where it cannot be written.
  void write(const std::filesystem::path& path) const;

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  int rank_;
  size_t most_, dropped_ = 0;
  std::vector<Span> spans_;
};

}  // namespace csml
