#include "engine/event_log.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstring>
#include <optional>
#include <string_view>

#include "engine/json.h"
#include "engine/log.h"

namespace csml {

using nlohmann::json;
namespace fs = std::filesystem;

namespace {

/// Castagnoli's polynomial, reflected (RFC 3720, appendix B.4).
constexpr std::array<uint32_t, 256> kCrc32c = [] {
  std::array<uint32_t, 256> table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
    table[byte] = crc;
  }
  return table;
}();

uint32_t masked_crc32c(const std::string& data) {
  uint32_t crc = 0xffffffffu;
  for (char c : data) crc = kCrc32c[(crc ^ static_cast<unsigned char>(c)) & 0xff] ^ crc >> 8;
  crc = ~crc;
  return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

template <class T>
std::string little_endian(T value) {
  std::string bytes(sizeof value, '\0');
  std::memcpy(bytes.data(), &value, sizeof value);
  return bytes;
}

std::string record(const std::string& data) {
  const std::string length = little_endian(static_cast<uint64_t>(data.size()));
  return length + little_endian(masked_crc32c(length)) + data + little_endian(masked_crc32c(data));
}

// Protocol buffers: a field is its number and wire type, then the value.
enum Wire { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

std::string varint(uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) bytes += static_cast<char>(value | 0x80);
  return bytes + static_cast<char>(value);
}

std::string field(int number, Wire wire, const std::string& value) {
  const std::string key = varint(static_cast<uint64_t>(number) << 3 | wire);
  return wire == kBytes ? key + varint(value.size()) + value : key + value;
}

/// Event{wall_time = 1, …}
std::string event(double time, const std::string& rest) { return field(1, kFixed64, little_endian(time)) + rest; }

double now() { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); }

/// Summary{value = 1: {tag = 1, simple_value = 2}}: the numbers of `object`, named below `prefix`.
std::string summary(const json& object, const std::string& prefix) {
  std::string values;
  for (const auto& [key, value] : object.items()) {
    if (value.is_object()) values += summary(value, prefix + key + "/");
    if (!value.is_number() && !value.is_boolean()) continue;
    const double number = value.is_boolean() ? value.get<bool>() : value.get<double>();
    if (!std::isfinite(number)) continue;
    values += field(1, kBytes,
                    field(1, kBytes, prefix + key) + field(2, kFixed32, little_endian(static_cast<float>(number))));
  }
  return values;
}

/// The record of a line; empty for a line without numbers.
std::string record_of(json line) {
  const std::optional<int64_t> step = step_of_line(line);
  if (!step) return "";
  const double time = line.value("time", json()).is_number() ? line["time"].get<double>() : now();
  const auto text_of = [&line](const char* key, const std::string& otherwise) {
    const auto found = line.find(key);
    return found != line.end() && found->is_string() ? found->get<std::string>() : otherwise;
  };
  std::string kind = text_of("kind", "run");
  if (kind == "event") kind = text_of("event", kind);
  for (const char* key : {"step", "epoch", "time"}) line.erase(key);
  const std::string values = summary(line, kind + "/");
  if (values.empty()) return "";
  return record(event(time, field(2, kVarint, varint(static_cast<uint64_t>(*step))) + field(5, kBytes, values)));
}

constexpr size_t kMostMetricsBytes = size_t{1} << 32;

void write_all(int file, const std::string& bytes, const fs::path& path) {
  for (size_t done = 0; done < bytes.size();) {
    const ssize_t n = ::write(file, bytes.data() + done, bytes.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw_errno("write", path);
    done += static_cast<size_t>(n);
  }
}

}  // namespace

std::string event_records(std::string_view lines) {
  std::string records;
  for (size_t at = 0; at < lines.size();) {
    const size_t end = std::min(lines.find('\n', at), lines.size());
    records += record_of(parse_json(lines.substr(at, end - at)));
    at = end + 1;
  }
  return records;
}

EventLog::EventLog(const fs::path& folder, const fs::path& metrics) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) throw Error(cat("cannot create the folder {}: {}", folder.string(), error.message()));
  std::string host(256, '\0');
  if (::gethostname(host.data(), host.size() - 1) != 0) host = "host";
  host.resize(std::strlen(host.c_str()));
  // TensorBoard finds files by "tfevents" and reads them in the order of their names.
  path_ = folder / cat("events.out.tfevents.{:010}.{}.{}", static_cast<int64_t>(now()), host, ::getpid());
  file_ = FileDescriptor(::open(path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
  if (!file_) throw_errno("open", path_);

  std::string history = record(event(now(), field(3, kBytes, "brain.Event:2")));
  std::error_code absent;
  const std::string lines = fs::exists(metrics, absent) ? read_text_file(metrics, kMostMetricsBytes) : "";
  history += event_records(lines);
  write_all(file_.get(), history, path_);
  for (const fs::directory_entry& entry : fs::directory_iterator(folder))
    if (entry.path() != path_ && entry.path().filename().string().starts_with("events.out.tfevents."))
      fs::remove(entry.path(), error);
  writer_ = std::thread([this] { drain(); });
}

EventLog::~EventLog() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  changed_.notify_one();
  writer_.join();
}

void EventLog::write(const json& line) {
  const std::string bytes = record_of(line);
  {
    const std::lock_guard lock(mutex_);
    pending_ += bytes;
  }
  changed_.notify_one();
}

void EventLog::drain() {
  bool good = true;
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return closing_ || !pending_.empty(); });
    if (pending_.empty()) return;
    const std::string bytes = std::move(pending_);
    pending_.clear();
    lock.unlock();
    if (good) {
      try {
        write_all(file_.get(), bytes, path_);
      } catch (const Error& e) {
        good = false;
        log_warn(cat("{}; TensorBoard's file ends here, metrics.jsonl goes on", e.what()));
      }
    }
    lock.lock();
  }
}

}  // namespace csml
