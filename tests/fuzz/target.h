// What the fuzz targets share. A target is a file <name>_fuzz.cpp with LLVMFuzzerTestOneInput: it hands any bytes to
// one parser and aborts where a promise is broken. An Error is the right answer to bad bytes; any other exception, a
// crash, a hang or a huge allocation is a finding.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <string_view>

#include "kernels/check.h"

namespace csml::fuzz {

/// Aborts with one line: the parser kept a promise badly.
[[noreturn]] inline void broken(const std::string& promise) {
  std::fprintf(stderr, "promise broken: %s\n", promise.c_str());
  std::abort();
}
inline void require(bool kept, const char* promise) {
  if (!kept) broken(promise);
}

/// Runs `work`; the message of the Error that it throws, which must not be empty, or empty.
template <class Work>
std::string error_of(const Work& work) {
  try {
    work();
  } catch (const Error& e) {
    if (*e.what() == '\0') broken("an error says what is wrong");
    return e.what();
  }
  return "";
}

/// The input, taken from the front: a target's switches first, the file that it parses behind them.
class Input {
 public:
  Input(const uint8_t* data, size_t bytes) : rest_(data, bytes) {}

  bool empty() const { return rest_.empty(); }
  /// The next byte; 0 behind the end.
  uint8_t byte() {
    if (rest_.empty()) return 0;
    const uint8_t value = rest_[0];
    rest_ = rest_.subspan(1);
    return value;
  }
  /// At most `count` bytes.
  std::span<const uint8_t> take(size_t count) {
    const std::span<const uint8_t> part = rest_.first(count < rest_.size() ? count : rest_.size());
    rest_ = rest_.subspan(part.size());
    return part;
  }
  std::span<const uint8_t> rest() const { return rest_; }

 private:
  std::span<const uint8_t> rest_;
};

inline std::string_view text_of(std::span<const uint8_t> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// A folder of this process for parsers that read paths, removed at its end.
class Scratch {
 public:
  Scratch() {
    std::string pattern = (std::filesystem::temp_directory_path() / "csml_fuzz_XXXXXX").string();
    if (!::mkdtemp(pattern.data())) broken("the folder for temporary files (TMPDIR) can be written");
    folder_ = pattern;
  }
  ~Scratch() {
    std::error_code error;
    std::filesystem::remove_all(folder_, error);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  const std::filesystem::path& folder() const { return folder_; }
  std::filesystem::path put(const std::string& name, std::string_view bytes) const {
    const std::filesystem::path path = folder_ / name;
    std::ofstream file(path, std::ios::binary | std::ios::trunc);
    file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    if (!file.flush()) broken("a temporary file can be written");
    return path;
  }
  void remove(const std::string& name) const { ::unlink((folder_ / name).c_str()); }

 private:
  std::filesystem::path folder_;
};

}  // namespace csml::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes);
