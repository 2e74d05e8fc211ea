#include "engine/log.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <mutex>
#include <optional>
#include <string_view>

#include "engine/json.h"
#include "engine/text.h"

namespace csml {

using nlohmann::json;

namespace {

constexpr double kRateWindowSeconds = 30;
constexpr size_t kMostLineBytes = 4000;  // of a line on standard error
constexpr off_t kBlockBytes = 1 << 16;
constexpr size_t kMostMetricsBytes = size_t{1} << 32;

struct Console {
  std::mutex mutex;
  int rank = 0, size = 1;
  bool quiet = false;
  bool line_open = false;  // a progress line stands on the terminal and is wiped before other text
};

Console& console() {
  static Console instance;
  return instance;
}

/// One write(2), so that lines of several processes do not mix. Standard error that is gone is nobody's error.
void put(const std::string& text) {
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, text.data(), text.size());
}

constexpr const char* kWipe = "\r\033[K";

void put_line(const char* level, const std::string& line) {
  Console& c = console();
  std::string text = c.line_open ? kWipe : "";
  c.line_open = false;
  if (c.size > 1) text += cat("[rank {}] ", c.rank);
  put(text + level + printable(line, kMostLineBytes) + "\n");
}

/// Of standard error, one less than there are: some terminals wrap after the last one. 79 where it does not say.
int terminal_columns() {
  winsize size{};
  return ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 1 ? size.ws_col - 1 : 79;
}

std::string rate_text(double rate) {
  return rate >= 100 ? cat("{:.0f}", rate) : rate >= 1 ? cat("{:.1f}", rate) : cat("{:.3f}", rate);
}

}  // namespace

MetricsLog::MetricsLog(std::filesystem::path path) : path_(std::move(path)) { open(); }

void MetricsLog::open() {
  file_ = FileDescriptor(::open(path_.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666));
  if (!file_) throw_errno("open", path_);
  const off_t size = ::lseek(file_.get(), 0, SEEK_END);
  if (size < 0) throw_errno("read", path_);
  // A torn last line is cut off: back to the newest newline, in blocks.
  off_t end = size;
  std::string block;
  while (end > 0) {
    const off_t start = std::max<off_t>(0, end - kBlockBytes);
    block.resize(static_cast<size_t>(end - start));
    read_file_part(file_, path_, static_cast<uint64_t>(start), block.data(), block.size());
    const size_t newline = block.rfind('\n');
    end = newline == std::string::npos ? start : start + static_cast<off_t>(newline) + 1;
    if (newline != std::string::npos) break;
  }
  if (end != size && ::ftruncate(file_.get(), end) != 0) throw_errno("repair", path_);
}

void MetricsLog::write(json line) {
  CHECK(line.is_object(), "{}: a metrics line must be an object", path_.string());
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  line["time"] = static_cast<double>(std::chrono::duration_cast<std::chrono::milliseconds>(now).count()) / 1000;
  const std::string text = line.dump(-1, ' ', false, json::error_handler_t::replace) + "\n";
  const off_t before = ::lseek(file_.get(), 0, SEEK_END);
  for (size_t done = 0; done < text.size();) {
    const ssize_t n = ::write(file_.get(), text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      const int code = n < 0 ? errno : ENOSPC;
      [[maybe_unused]] const int undone = ::ftruncate(file_.get(), before);
      errno = code;
      throw_errno("write", path_);
    }
    done += static_cast<size_t>(n);
  }
}

int64_t MetricsLog::truncate_after_step(int64_t step) {
  AtomicFile kept(path_);
  int64_t dropped = 0;
  const std::string all = read_text_file(path_, kMostMetricsBytes);
  for (size_t at = 0; at < all.size();) {
    const size_t end = std::min(all.find('\n', at), all.size());
    const std::string_view text = std::string_view(all).substr(at, end - at);
    at = end + 1;
    if (const std::optional<int64_t> found = step_of_line(parse_json(text)); !found || *found > step) {
      ++dropped;
      continue;
    }
    kept.write(text.data(), text.size());
    kept.write("\n", 1);
  }
  if (dropped > 0) {
    kept.commit();
    open();
  }
  return dropped;
}

void log_configure(int rank, int size, bool quiet) {
  Console& c = console();
  const std::lock_guard lock(c.mutex);
  c.rank = rank;
  c.size = size;
  c.quiet = quiet;
}

void log_info(const std::string& line) {
  const std::lock_guard lock(console().mutex);
  if (!console().quiet && console().rank == 0) put_line("", line);
}

void log_warn(const std::string& line) {
  const std::lock_guard lock(console().mutex);
  put_line("warning: ", line);
}

std::string duration_text(double seconds) {
  const int64_t s = static_cast<int64_t>(std::max(0.0, std::min(seconds, 3.6e9)));
  if (s < 3600) return cat("{}:{:02}", s / 60, s % 60);
  return cat("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
}

Progress::Progress(std::string label, int64_t total, std::string unit, int64_t start)
    : label_(std::move(label)), unit_(std::move(unit)), total_(total), done_(start) {
  const std::lock_guard lock(console().mutex);
  active_ = !console().quiet && console().rank == 0;
  terminal_ = ::isatty(STDERR_FILENO) == 1;
  marks_.push_back({0, start});
}

Progress::~Progress() {
  const std::lock_guard lock(console().mutex);
  if (console().line_open) put("\n");
  console().line_open = false;
}

double Progress::seconds() const { return std::chrono::duration<double>(Clock::now() - started_).count(); }

void Progress::update(int64_t done, const std::string& text) {
  done_ = done;
  text_ = text;
  const double now = seconds();
  constexpr double kMarkEvery = 0.5;
  if (now - marks_.back().seconds >= kMarkEvery) marks_.push_back({now, done});
  while (marks_.size() > 1 && now - marks_[1].seconds > kRateWindowSeconds) marks_.pop_front();
  if (now - drawn_ >= (terminal_ ? 0.1 : 10.0)) draw();
}

void Progress::finish() {
  draw();
  const std::lock_guard lock(console().mutex);
  if (console().line_open) put("\n");
  console().line_open = false;
}

void Progress::leave_out(double seconds) {
  for (Mark& mark : marks_) mark.seconds += seconds;
}

std::string Progress::line(double now, int columns) const {
  const std::string done = cat("{}/{}", done_, total_);
  std::string percent, rate, left;
  if (total_ > 0) percent = cat("{:.1f} %", 100.0 * static_cast<double>(done_) / static_cast<double>(total_));
  const double elapsed = now - marks_.front().seconds;
  const int64_t recent = done_ - marks_.front().done;
  if (elapsed > 0 && recent > 0) {
    const double each = static_cast<double>(recent) / elapsed;
    rate = cat("{} {}/s", rate_text(each), unit_);
    left = done_ < total_ ? cat("{} left", duration_text(static_cast<double>(total_ - done_) / each))
                          : cat("{} taken", duration_text(now));
  }
  std::string label = label_, unit = " " + unit_;
  const auto whole = [&] {
    std::string line;
    for (const std::string& part : {label, done + unit, percent, rate, left, text_})
      if (!part.empty()) line += (line.empty() ? "" : "  ") + part;
    return line;
  };
  for (std::string* dispensable : {&label, &rate, &percent, &unit}) {
    if (columns <= 0 || whole().size() <= static_cast<size_t>(columns)) break;
    dispensable->clear();
  }
  const std::string line = whole();
  return columns > 0 ? line.substr(0, static_cast<size_t>(columns)) : line;
}

void Progress::draw() {
  if (!active_) return;
  drawn_ = seconds();
  const std::string text = line(drawn_, terminal_ ? terminal_columns() : 0);
  Console& c = console();
  const std::lock_guard lock(c.mutex);
  if (terminal_) {
    put(kWipe + text);
    c.line_open = true;
  } else {
    put(text + "\n");
  }
}

}  // namespace csml
