#include "engine/file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace csml {

namespace {

const char* advice_for(int code) {
  switch (code) {
    case ENOSPC:
    case EDQUOT:
      return "; free some space or choose a folder on another disk";
    case EFBIG:
      return "; the file size limit is too small (see ulimit -f)";
    case EACCES:
    case EPERM:
      return "; check who owns it and its permissions";
    case EROFS:
      return "; it is on a read-only file system, choose another folder";
    case ENOENT:
      return "; check the path";
    case EMFILE:
    case ENFILE:
      return "; too many open files (see ulimit -n)";
    case EIO:
      return "; the disk reports an error, check its health";
    default:
      return "";
  }
}

std::string hex_of(XXH128_hash_t hash) { return cat("{:016x}{:016x}", hash.high64, hash.low64); }

FileDescriptor open_to_read(const std::filesystem::path& path) {
  FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file) throw_errno("open", path);
  return file;
}

/// One read(2), repeated when a signal interrupts it.
size_t read_some(const FileDescriptor& file, void* data, size_t bytes, const std::filesystem::path& path) {
  for (;;) {
    const ssize_t n = ::read(file.get(), data, bytes);
    if (n >= 0) return static_cast<size_t>(n);
    if (errno != EINTR) throw_errno("read", path);
  }
}

struct HashState {
  HashState() : state(XXH3_createState()) {
    CHECK(state != nullptr, "out of memory for a checksum");
    XXH3_128bits_reset(state);
  }
  ~HashState() { XXH3_freeState(state); }
  HashState(const HashState&) = delete;
  HashState& operator=(const HashState&) = delete;
  void update(const void* data, size_t bytes) { XXH3_128bits_update(state, data, bytes); }
  std::string hex() const { return hex_of(XXH3_128bits_digest(state)); }
  XXH3_state_t* state;
};

/// Where `path` leads through symbolic links, to a file that need not exist yet.
std::filesystem::path named_by_links(std::filesystem::path path) {
  namespace fs = std::filesystem;
  constexpr int kMost = 40;  // as Linux allows
  std::error_code error;
  for (int i = 0; fs::is_symlink(path, error); ++i) {
    if (i == kMost) {
      errno = ELOOP;
      throw_errno("follow the link", path);
    }
    const fs::path target = fs::read_symlink(path, error);
    if (error) break;
    path = path.parent_path() / target;
  }
  return path;
}

}  // namespace

void throw_errno(const std::string& action, const std::filesystem::path& path) {
  const int code = errno;
  throw Error(cat("cannot {} {}: {}{}", action, path.string(), std::strerror(code), advice_for(code)));
}

FileDescriptor& FileDescriptor::operator=(FileDescriptor&& other) noexcept {
  if (this != &other) {
    close();
    std::swap(fd_, other.fd_);
  }
  return *this;
}

void FileDescriptor::close() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

FileDigest digest_of(const std::filesystem::path& path) {
  const FileDescriptor file = open_to_read(path);
  // Pages that are clean are dropped, so that what is hashed comes from the disk and not from what was just written.
  posix_fadvise(file.get(), 0, 0, POSIX_FADV_DONTNEED);
  std::vector<char> chunk(1 << 20);
  HashState hash;
  FileDigest digest;
  while (const size_t n = read_some(file, chunk.data(), chunk.size(), path)) {
    hash.update(chunk.data(), n);
    digest.bytes += n;
  }
  digest.hex = hash.hex();
  return digest;
}

FileDigest digest_of(const void* data, size_t bytes) { return {bytes, hex_of(XXH3_128bits(data, bytes))}; }

std::string read_text_file(const std::filesystem::path& path, size_t most_bytes) {
  const FileDescriptor file = open_to_read(path);
  std::string text;
  char chunk[1 << 14];
  while (const size_t n = read_some(file, chunk, sizeof chunk, path)) {
    CHECK(text.size() + n <= most_bytes, "{}: larger than {} bytes, which is not a file of this kind", path.string(),
          most_bytes);
    text.append(chunk, n);
  }
  return text;
}

void read_file_part(const FileDescriptor& file, const std::filesystem::path& path, uint64_t offset, void* data,
                    size_t bytes) {
  char* next = static_cast<char*>(data);
  while (bytes > 0) {
    const ssize_t n = ::pread(file.get(), next, bytes, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw_errno("read", path);
    CHECK(n > 0, "{}: the file became shorter while it was read", path.string());
    next += n;
    offset += static_cast<uint64_t>(n);
    bytes -= static_cast<size_t>(n);
  }
}

void read_file_part(const std::filesystem::path& path, uint64_t offset, void* data, size_t bytes) {
  read_file_part(open_to_read(path), path, offset, data, bytes);
}

void sync_directory(const std::filesystem::path& folder) {
  const FileDescriptor directory(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory) throw_errno("open", folder);
  // Some network file systems cannot flush a folder and say EINVAL; there is nothing better to do on them.
  if (::fsync(directory.get()) != 0 && errno != EINVAL) throw_errno("flush", folder);
}

struct AtomicFile::Hash : HashState {};

AtomicFile::AtomicFile(std::filesystem::path path) : path_(std::move(path)), hash_(std::make_unique<Hash>()) {
  path_ = named_by_links(path_);
  struct stat there {};
  const bool replaces = ::stat(path_.c_str(), &there) == 0;
  if (replaces && S_ISDIR(there.st_mode)) {
    errno = EISDIR;
    throw_errno("write", path_);
  }
  if (replaces && !S_ISREG(there.st_mode)) {
    file_ = FileDescriptor(::open(path_.c_str(), O_WRONLY | O_CLOEXEC | O_NOCTTY));
    if (!file_) throw_errno("open", path_);
    return;
  }
  constexpr int kTries = 100;
  for (int i = 0; i < kTries && !file_; ++i) {
    uint64_t random = 0;
    if (::getrandom(&random, sizeof random, 0) != sizeof random) throw_errno("draw a name for a file beside", path_);
    aside_ = path_.string() + cat(".tmp-{:016x}", random);
    file_ = FileDescriptor(::open(aside_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666));
    if (!file_ && errno != EEXIST) throw_errno("create", aside_);
  }
  if (!file_) throw_errno("create", aside_);
  // Where permissions cannot be kept (some network file systems) the file is still better written than not.
  if (replaces) { [[maybe_unused]] const int kept = ::fchmod(file_.get(), there.st_mode & 0777); }
}

AtomicFile::~AtomicFile() {
  if (file_ && !aside_.empty()) ::unlink(aside_.c_str());
}

void AtomicFile::write(const void* data, size_t bytes) {
  constexpr size_t kMostPerCall = size_t{1} << 30;  // Linux writes at most 2 GiB at once
  const char* next = static_cast<const char*>(data);
  if (bytes > 0) hash_->update(data, bytes);
  bytes_ += bytes;
  while (bytes > 0) {
    const ssize_t n = ::write(file_.get(), next, std::min(bytes, kMostPerCall));
    if (n < 0 && errno == EINTR) continue;
    if (n == 0) errno = ENOSPC;
    if (n <= 0) throw_errno("write", path_);
    next += n;
    bytes -= static_cast<size_t>(n);
  }
}

FileDigest AtomicFile::commit() {
  if (aside_.empty()) {
    file_.close();
    return {bytes_, hash_->hex()};
  }
  if (::fsync(file_.get()) != 0) throw_errno("flush", path_);
  if (::rename(aside_.c_str(), path_.c_str()) != 0) throw_errno("rename a file into place as", path_);
  file_.close();
  sync_directory(path_.has_parent_path() ? path_.parent_path() : ".");
  return {bytes_, hash_->hex()};
}

FileDigest write_text_file(const std::filesystem::path& path, const std::string& text) {
  AtomicFile file(path);
  file.write(text.data(), text.size());
  return file.commit();
}

FolderLock::FolderLock(const std::filesystem::path& folder) {
  namespace fs = std::filesystem;
  std::error_code error;
  if (fs::exists(folder, error) && !fs::is_directory(folder, error))
    throw Error(cat("{} is a file; give a folder", folder.string()));
  fs::create_directories(folder, error);
  if (error) throw Error(cat("cannot create the folder {}: {}", folder.string(), error.message()));
  const fs::path path = folder / ".lock";
  file_ = FileDescriptor(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666));
  if (!file_) throw Error(cat("cannot open {}: {}", path.string(), std::strerror(errno)));
  if (::flock(file_.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
    throw Error(cat("{} is in use by another process; wait for its end, or give another folder", folder.string()));
}

}  // namespace csml
