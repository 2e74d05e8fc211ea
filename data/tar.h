// Tar archives, listed without being unpacked: ustar (POSIX.1-1988), with long names and large sizes as PAX
// (POSIX.1-2001) and GNU tar write them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/file.h"

namespace csml {

/// A regular file in an archive: its bytes are at [offset, offset + bytes) of the archive.
struct TarMember {
  std::string name;
  uint64_t offset = 0, bytes = 0;
};

struct TarList {
  std::vector<TarMember> files;  // in the archive's order
  int64_t others = 0;            // folders, links, devices: left out and never followed
};

/// Reads the headers and skips the contents. A name is only a name: nothing is created, so "../x" and "/x" do no harm.
/// Throws Error that names the archive and the byte: no tar, a header with a wrong checksum, a size behind the end of
/// the file, a name longer than 4096 bytes, sparse files.
TarList list_tar(const std::string& path);
/// The same of an open file; `path` is for messages.
TarList list_tar(const FileDescriptor& file, const std::string& path);

}  // namespace csml
