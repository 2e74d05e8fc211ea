// LaunchLog: which kernels ran in blocks of what size. tests/kernel_resources.py takes from it the blocks for which it
// computes the occupancy.
#pragma once

#include <set>
#include <string>
#include <tuple>

#include "kernels/cuda/values.h"

namespace csml::simt {

/// Where the environment variable CSML_SIMT_LAUNCHES names a file, the end of the process writes it: a line for each
/// kernel and size, `ADDRESS THREADS DYNAMIC_SHARED_BYTES NAME`, the address relative to csml_simt_anchor.
class LaunchLog {
 public:
  LaunchLog();
  ~LaunchLog();
  void note(const void* kernel, const cuda::Launch& how) {
    if (!file_.empty()) seen_.emplace(kernel, how.threads, how.shared_bytes, how.name);
  }

 private:
  std::string file_;
  std::set<std::tuple<const void*, int, size_t, std::string>> seen_;
};

}  // namespace csml::simt
