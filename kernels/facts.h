// What a build is made for and what a machine has of CUDA, in words, for `csml --version` and `csml doctor`.
#pragma once

#include <string>
#include <vector>

namespace csml {

/// What the CPU's kernels in use are compiled for: x86-64 with the level of its instruction set (-v3: AVX2 and FMA,
/// -v4: AVX-512), or the name of another architecture. A package has several builds, of which the machine takes one.
const char* kernel_instructions();

struct CudaFacts {
  /// A library that is loaded at run time: its version and what speaks against it, or why it cannot be used.
  struct Library {
    std::string version{}, warning{}, error{};
  };

  bool built = false;                // the build has the CUDA backend; else nothing below is filled
  std::string why_not{};             // why the first card cannot be used; empty: it can
  std::vector<std::string> cards{};  // each in a few words
  int pairs = 0, peers = 0;          // pairs of cards, and those of them that reach each other's memory
  std::string driver{}, runtime{};   // newest CUDA that the driver offers (empty: no driver), CUDA of the build
  Library cudnn{}, cublas_lt{};
};

}  // namespace csml
