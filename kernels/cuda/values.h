// Launch, Index, Pack and the matrix fragments: plain types that kernels, kernels/cuda/device.cuh and the executor
// share.
#pragma once

#include <cstdint>

#include "kernels/half.h"

namespace csml::cuda {

constexpr int kWarp = 32;
constexpr size_t kMaxSharedBytes = 227 * 1024;       // of one block, dynamic and static together, on capability 9.0
constexpr size_t kMaxStaticSharedBytes = 48 * 1024;  // of one block, static

/// Blocks of a launch. Blocks themselves have one dimension.
struct Grid {
  int64_t x = 1;         // at most 2^31 - 1
  int64_t y = 1, z = 1;  // at most 65,535
};

/// How a kernel is started. A grid without blocks starts nothing.
struct Launch {
  const char* name = "";  // in error messages
  Grid grid{};
  int threads = 256;        // of a block: a multiple of 32, at most 1024
  size_t shared_bytes = 0;  // dynamic shared memory of a block
};

struct Index {
  int x, y, z;
};

/// N values that cross memory in one instruction: sizeof(T) * N is 1, 2, 4, 8 or 16 bytes, and so is the alignment.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  static_assert(sizeof(T) * N <= 16 && (N & (N - 1)) == 0);
  T v[N];

  CSML_HD T& operator[](int i) { return v[i]; }
  CSML_HD const T& operator[](int i) const { return v[i]; }
};

/// Values of T in 16 bytes.
template <class T>
constexpr int kPack = 16 / static_cast<int>(sizeof(T));

/// Marks the 32-bit operand type whose lower 13 bits of mantissa the tensor cores ignore.
struct tf32 {};

// Fragments of D[16 x 8] += A[16 x K] * B[K x 8], spread over a warp (PTX ISA, "Matrix Fragments for mma.m16n8k16" and
// "...m16n8k8"). With g = lane / 4 and t = lane % 4 a lane holds
//   bf16, f16 (K = 16), two values to a register, the lower k in the lower half:
//     a.r[0] = A[g][2t, 2t+1]      a.r[1] = A[g+8][2t, 2t+1]      b.r[0] = B[2t, 2t+1][g]
//     a.r[2] = A[g][2t+8, 2t+9]    a.r[3] = A[g+8][2t+8, 2t+9]    b.r[1] = B[2t+8, 2t+9][g]
//   tf32 (K = 8), one float to a register:
//     a.r[0] = A[g][t]             a.r[1] = A[g+8][t]             b.r[0] = B[t][g]
//     a.r[2] = A[g][t+4]           a.r[3] = A[g+8][t+4]           b.r[1] = B[t+4][g]
//   either way, in f32:
//     d.v[0] = D[g][2t]            d.v[1] = D[g][2t+1]
//     d.v[2] = D[g+8][2t]          d.v[3] = D[g+8][2t+1]
template <class T>
struct FragmentA {
  uint32_t r[4];
};
template <class T>
struct FragmentB {
  uint32_t r[2];
};
struct FragmentD {
  float v[4];
};

}  // namespace csml::cuda
