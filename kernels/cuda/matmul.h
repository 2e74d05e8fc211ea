// The GPU's matrix products, by cuBLASLt.
#pragma once

#include <memory>
#include <unordered_map>

#include "kernels/cuda/context.h"

namespace csml::cuda {

/// a and b have one type T of f32, bf16 and f16; c is T or f32; sums are f32, f32 factors are rounded to TF32 only
/// where tf32 allows it. bias is c's type or f32. An algorithm is asked of cuBLASLt's heuristics once per shape, types
/// and alignment.
class Matmuls {
 public:
  Matmuls(Context& context, bool tf32);
  ~Matmuls();

  void matmul(const Backend::Matmul&);

 private:
  struct Key;
  struct Hash;
  struct Plan;
  struct Cache;

  const Plan& plan(const Key& key);

  Context& context_;
  bool tf32_;
  std::shared_ptr<void> handle_;  // cublasLtHandle_t
  std::unique_ptr<Cache> plans_;
};

}  // namespace csml::cuda
