#include "data/gzip.h"

#include <fcntl.h>
#include <unistd.h>
#include <zlib.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <vector>

#include "kernels/check.h"

namespace csml {
namespace {

/// A file without a name; where the file system has none of these, one whose name is removed at once.
FileDescriptor temporary_file(const std::filesystem::path& folder) {
  FileDescriptor file(::open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (file) return file;
  std::string name = (folder / "csml-XXXXXX").string();
  file = FileDescriptor(::mkostemp(name.data(), O_CLOEXEC));
  if (!file) throw_errno("make a temporary file in", folder);
  ::unlink(name.c_str());
  return file;
}

void write_all(const FileDescriptor& file, const uint8_t* data, size_t bytes, const std::filesystem::path& folder) {
  for (size_t done = 0; done < bytes;) {
    const ssize_t wrote = ::write(file.get(), data + done, bytes - done);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote <= 0) throw_errno("unpack a gzip file into", folder);
    done += static_cast<size_t>(wrote);
  }
}

}  // namespace

bool is_gzip(const std::string& path) {
  const FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  uint8_t magic[2] = {};
  return file && ::read(file.get(), magic, 2) == 2 && magic[0] == 0x1F && magic[1] == 0x8B;
}

FileDescriptor unpacked_gzip(const std::string& path) {
  const std::unique_ptr<gzFile_s, int (*)(gzFile)> from(gzopen(path.c_str(), "rb"), gzclose);
  if (!from) throw_errno("open", path);
  gzbuffer(from.get(), 1 << 17);
  const char* chosen = std::getenv("TMPDIR");
  const std::filesystem::path folder = chosen && *chosen ? chosen : "/tmp";
  FileDescriptor to = temporary_file(folder);
  std::vector<uint8_t> block(size_t{1} << 20);
  for (;;) {
    const int got = gzread(from.get(), block.data(), static_cast<unsigned>(block.size()));
    int code = Z_OK;
    gzerror(from.get(), &code);
    if (got < 0 || (code != Z_OK && code != Z_STREAM_END)) throw Error(cat("{}: truncated or damaged gzip file", path));
    if (got == 0) return to;
    write_all(to, block.data(), static_cast<size_t>(got), folder);
  }
}

}  // namespace csml
