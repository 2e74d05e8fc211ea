// Products of rows with rows (s[i, j] = a_i . b_j) in tiles of 64 x 64, for kernels that use a tile at once and never
// store it: contrast.cu and topk.cu. Rows are staged into shared memory chunk by chunk of their columns.
#pragma once

#include "kernels/cuda/launch.cuh"

namespace csml::cuda {

constexpr int kTileRows = 64;

/// Rows of a matrix [.., dim], as far as `end`.
template <class T>
struct Rows {
  const T* data;
  int64_t end, dim;
  bool wide;  // rows may be copied 16 bytes at a time

  Rows(const T* rows, int64_t count, int64_t columns)
      : data(rows), end(count), dim(columns), wide(aligned(rows) && columns % kPack<T> == 0) {}
  /// Only rows below last.
  DEVICE Rows until(int64_t last) const {
    Rows some = *this;
    some.end = last;
    return some;
  }
};

/// s[r * kStride + c] = x[first + r, column + c] for r < kRows, c < kColumns, zeros outside the matrix. By the whole
/// block; asynchronous where it can be: copy_commit() and copy_wait() are the caller's.
template <int kRows, int kColumns, int kStride, class S, class T>
DEVICE void stage_rows(const Shared<S>& s, const Rows<T>& x, int64_t first, int64_t column) {
  if constexpr (std::is_same_v<S, T>) {
    if (x.wide) {
      constexpr int kAcross = kColumns / kPack<T>;
      for (int i = thread(); i < kRows * kAcross; i += block_threads()) {
        const int r = i / kAcross, c = i % kAcross * kPack<T>;
        const bool inside = first + r < x.end && column + c < x.dim;
        const T* from = inside ? x.data + (first + r) * x.dim + column + c : x.data;
        copy_async<16>(s, r * kStride + c, from, inside);
      }
      return;
    }
  }
  for (int i = thread(); i < kRows * kColumns; i += block_threads()) {
    const int r = i / kColumns, c = i % kColumns;
    const bool inside = first + r < x.end && column + c < x.dim;
    s[r * kStride + c] = inside ? S(x.data[(first + r) * x.dim + column + c]) : S(0.f);
  }
}

// ---- in f32, by 256 threads -----------------------------------------------------------------------------------------

/// Thread 16 p + q holds s[4p + i, q + 16j]: a warp has 8 rows that follow each other.
struct FloatTile {
  static constexpr int kThreads = 256, kWarpRows = 8, kDepth = 32, kStride = kDepth + 4;
  float s[4][4] = {};

  DEVICE static int row(int i) { return thread() / 16 * 4 + i; }
  DEVICE static int column(int j) { return thread() % 16 + 16 * j; }

  /// Adds the product of the first `depth` columns of two chunks. The order of addition does not depend on the place in
  /// the tile: equal rows give equal products.
  DEVICE void multiply(const Shared<float>& a, const Shared<float>& b, int depth) {
    for (int k = 0; k < depth; k += 4) {
      Pack<float, 4> x[4], y[4];
      for (int i = 0; i < 4; ++i) x[i] = load_pack<4>(a, row(i) * kStride + k);
      for (int j = 0; j < 4; ++j) y[j] = load_pack<4>(b, column(j) * kStride + k);
      for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 4; ++j)
          for (int l = 0; l < 4; ++l) s[i][j] += x[i][l] * y[j][l];
    }
  }
};

// ---- on the tensor cores, by 128 threads ----------------------------------------------------------------------------

/// The 16 x 16 values at (row, k) of shared rows as operand a. `stride`: elements of a row, 8 modulo 64 for
/// conflict-free access.
template <class T>
DEVICE FragmentA<T> load_a(const Shared<T>& s, int stride, int row, int k) {
  FragmentA<T> a;
  load_matrices<4>(a.r, s, (row + lane() % 16) * stride + k + lane() / 16 * 8);
  return a;
}
/// Rows row .. row + 15 of shared memory as columns of b, k from `k` on: two fragments of 8 columns.
template <class T>
DEVICE void load_b_rows(FragmentB<T> (&b)[2], const Shared<T>& s, int stride, int row, int k) {
  uint32_t r[4];
  load_matrices<4>(r, s, (row + lane() % 8 + lane() / 16 * 8) * stride + k + lane() / 8 % 2 * 8);
  b[0] = {{r[0], r[1]}}, b[1] = {{r[2], r[3]}};
}
/// Rows row .. row + 15 of shared memory as the depth of b, columns from `column` on: two fragments of 8 columns.
template <class T>
DEVICE void load_b_depth(FragmentB<T> (&b)[2], const Shared<T>& s, int stride, int row, int column) {
  uint32_t r[4];
  load_matrices<4, true>(r, s, (row + lane() % 16) * stride + column + lane() / 16 * 8);
  b[0] = {{r[0], r[1]}}, b[1] = {{r[2], r[3]}};
}
/// Two values as a register of operand a or b.
template <class T>
DEVICE uint32_t pack_pair(float low, float high) {
  return T(low).bits | static_cast<uint32_t>(T(high).bits) << 16;
}

}  // namespace csml::cuda
