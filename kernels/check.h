// Error, CHECK and cat(): how every layer says what went wrong, where, and with which values.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>

namespace csml {

/// Any failure the user can act on. what() is one line: what, where, and what to do.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The command line or the configuration is wrong (exit code 2 instead of 1).
class UsageError : public Error {
 public:
  using Error::Error;
};

/// cat("x is {}", 3): formatted string (fmt syntax).
template <class... Args>
std::string cat(fmt::format_string<Args...> format, Args&&... args) {
  return fmt::format(format, std::forward<Args>(args)...);
}

[[noreturn]] inline void check_failed(const char* file, int line, const char* condition, const std::string& message) {
  throw Error(cat("{} [{}:{}: {}]", message, file, line, condition));
}

}  // namespace csml

// CHECK(cond, "format", values…): always on; throws csml::Error with the text, the place and the condition.
#define CHECK(cond, ...) \
  ((cond) ? static_cast<void>(0) : ::csml::check_failed(__FILE_NAME__, __LINE__, #cond, ::csml::cat(__VA_ARGS__)))

// DCHECK: the same in debug builds, nothing in release builds. For inner loops.
#ifdef NDEBUG
#define DCHECK(cond, ...) static_cast<void>(0)
#else
#define DCHECK(cond, ...) CHECK(cond, __VA_ARGS__)
#endif
