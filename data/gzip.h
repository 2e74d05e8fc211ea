// Gzip files unpacked into temporary ones.
#pragma once

#include <string>

#include "engine/file.h"

namespace csml {

/// Whether the file begins as gzip files do.
bool is_gzip(const std::string& path);

/// The unpacked content of a gzip file, in a file without a name in the folder for temporary files ($TMPDIR, else /tmp):
/// it goes when it is closed. Throws Error for a damaged or truncated file and where the folder is full.
FileDescriptor unpacked_gzip(const std::string& path);

}  // namespace csml
