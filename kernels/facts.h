// CudaFacts: what a build and a machine have of CUDA, in words, for `csml doctor`.
#pragma once

#include <string>
#include <vector>

namespace csml {

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
