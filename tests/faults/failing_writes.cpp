// Preloaded into csml by tests/faults/faults.py: makes one call that writes below a folder fail, or counts such calls.
//   CSML_FAULT_UNDER   the folder
//   CSML_FAULT_KIND    enospc | eio | short (write() takes half; the other calls succeed) | none
//   CSML_FAULT_CALL    which of the calls, from 1 on
//   CSML_FAULT_CALLS   how many from there on (default 1)
//   CSML_FAULT_COUNT   a file that receives the number of calls when the program ends
// Calls: write, fsync, ftruncate, rename, renameat2, mkdir, and open where it may create.
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <climits>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

template <class F>
F next(const char* name) {
  return reinterpret_cast<F>(::dlsym(RTLD_NEXT, name));
}

long number(const char* name, long otherwise) {
  const char* text = std::getenv(name);
  return text ? std::atol(text) : otherwise;
}

std::atomic<long> g_calls{0};

bool below(const char* path) {
  static const char* folder = std::getenv("CSML_FAULT_UNDER");
  return folder && path && std::strncmp(path, folder, std::strlen(folder)) == 0;
}

bool below(int fd) {
  char link[64], path[PATH_MAX];
  std::snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  const ssize_t n = ::readlink(link, path, sizeof path - 1);
  if (n < 0) return false;
  path[n] = '\0';
  return below(path);
}

/// Counts a call; the error number it is to fail with, 0: none, -1: it is to be short.
int fault() {
  static const long first = number("CSML_FAULT_CALL", 0), calls = number("CSML_FAULT_CALLS", 1);
  static const char* kind = std::getenv("CSML_FAULT_KIND");
  const long call = ++g_calls;
  if (!kind || first <= 0 || call < first || call >= first + calls) return 0;
  return std::strcmp(kind, "enospc") == 0  ? ENOSPC
         : std::strcmp(kind, "eio") == 0   ? EIO
         : std::strcmp(kind, "short") == 0 ? -1
                                           : 0;
}

bool fails() {
  const int code = fault();
  if (code > 0) errno = code;
  return code > 0;
}

__attribute__((destructor)) void tell() {
  const char* path = std::getenv("CSML_FAULT_COUNT");
  if (!path) return;
  if (std::FILE* file = std::fopen(path, "w")) {
    std::fprintf(file, "%ld\n", g_calls.load());
    std::fclose(file);
  }
}

}  // namespace

extern "C" {

ssize_t write(int fd, const void* data, size_t bytes) {
  static const auto real = next<ssize_t (*)(int, const void*, size_t)>("write");
  const int code = below(fd) ? fault() : 0;
  if (code > 0) {
    errno = code;
    return -1;
  }
  return real(fd, data, code < 0 && bytes > 1 ? bytes / 2 : bytes);
}

int fsync(int fd) {
  static const auto real = next<int (*)(int)>("fsync");
  return below(fd) && fails() ? -1 : real(fd);
}

int ftruncate(int fd, off_t length) noexcept {
  static const auto real = next<int (*)(int, off_t)>("ftruncate");
  return below(fd) && fails() ? -1 : real(fd, length);
}

int rename(const char* from, const char* to) noexcept {
  static const auto real = next<int (*)(const char*, const char*)>("rename");
  return below(to) && fails() ? -1 : real(from, to);
}

int renameat2(int from_folder, const char* from, int to_folder, const char* to, unsigned flags) noexcept {
  static const auto real = next<int (*)(int, const char*, int, const char*, unsigned)>("renameat2");
  return below(to) && fails() ? -1 : real(from_folder, from, to_folder, to, flags);
}

int mkdir(const char* path, mode_t mode) noexcept {
  static const auto real = next<int (*)(const char*, mode_t)>("mkdir");
  return below(path) && fails() ? -1 : real(path, mode);
}

int open(const char* path, int flags, ...) {
  static const auto real = next<int (*)(const char*, int, ...)>("open");
  va_list rest;
  va_start(rest, flags);
  const mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;
  va_end(rest);
  return (flags & O_CREAT) && below(path) && fails() ? -1 : real(path, flags, mode);
}

}  // extern "C"
