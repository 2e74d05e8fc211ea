// Versions of NVIDIA's libraries: the one that is loaded against the one that csml was built with.
#pragma once

#include <string>

namespace csml::cuda {

/// 91900 -> 9.19.0: how cuDNN 9 and cuBLASLt 12 and newer number themselves.
std::string version_text(size_t number);
/// NVIDIA keeps a library compatible with programs built against an older minor version, not the other way round.
/// Throws Error where the major versions differ; a line of warning where the one found has the smaller minor one; else
/// empty.
std::string check_version(const char* name, size_t found, size_t built);

}  // namespace csml::cuda
