// Files that are either whole or absent: written aside, hashed, flushed to disk and renamed into place.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "kernels/check.h"

namespace csml {

/// Throws Error: "cannot <action> <path>: <errno text>; <advice>". Call it right after the failed system call.
[[noreturn]] void throw_errno(const std::string& action, const std::filesystem::path& path);

/// Owns a POSIX file descriptor; -1 is none.
class FileDescriptor {
 public:
  explicit FileDescriptor(int fd = -1) : fd_(fd) {}
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(other.fd_) { other.fd_ = -1; }
  FileDescriptor& operator=(FileDescriptor&& other) noexcept;
  ~FileDescriptor() { close(); }

  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  void close();

 private:
  int fd_;
};

/// Size and XXH3-128 of a file's bytes; `hex` is what `xxhsum -H2` prints.
struct FileDigest {
  uint64_t bytes = 0;
  std::string hex;
  friend bool operator==(const FileDigest&, const FileDigest&) = default;
};

/// Digest of a file as it is on disk. Throws Error when it cannot be read.
FileDigest digest_of(const std::filesystem::path& path);
/// Digest of bytes in memory.
FileDigest digest_of(const void* data, size_t bytes);

/// Whole content of a small file. Throws Error when it cannot be read or is larger than `most_bytes`.
std::string read_text_file(const std::filesystem::path& path, size_t most_bytes);

/// Exactly `bytes` bytes from byte `offset` on. Throws Error when they cannot be read or the file ends before.
void read_file_part(const FileDescriptor& file, const std::filesystem::path& path, uint64_t offset, void* data,
                    size_t bytes);
void read_file_part(const std::filesystem::path& path, uint64_t offset, void* data, size_t bytes);

/// Flushes a folder's entries (creations and renames in it) to disk. Throws Error.
void sync_directory(const std::filesystem::path& folder);

/// Writes `path` aside as "<path>.tmp-<random>", a file that nobody else can have made; commit() flushes it to disk and
/// renames it into place. Until then, and after any failure, `path` is untouched and the file aside is removed by the
/// destructor. A file that is replaced hands on its permissions, a new one's follow the umask. A symbolic link stays and
/// the file it names is replaced. Devices and pipes are written to and never replaced; a folder is refused.
class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* data, size_t bytes);
  FileDigest commit();

 private:
  struct Hash;
  std::filesystem::path path_, aside_;  // aside_ is empty where path_ is a device or a pipe
  FileDescriptor file_;
  std::unique_ptr<Hash> hash_;
  uint64_t bytes_ = 0;
};

/// A folder that this process alone works in: an advisory lock (flock) on the file ".lock" in it, which ends with the
/// process and stays where other files of the folder are removed. Makes the folder where it is missing. On a file system
/// without locks it holds nothing.
class FolderLock {
 public:
  FolderLock() = default;
  /// Throws Error where another process holds it, and where the folder or the file cannot be made.
  explicit FolderLock(const std::filesystem::path& folder);
  /// Whether it was taken.
  explicit operator bool() const { return static_cast<bool>(file_); }

 private:
  FileDescriptor file_;
};

/// AtomicFile in one call.
FileDigest write_text_file(const std::filesystem::path& path, const std::string& text);

}  // namespace csml
