// Matrix fragments of the executor: ldmatrix and mma.sync emulated for a whole warp at once. Layouts: values.h.
#pragma once

#include "tests/simt/device.h"

namespace csml::cuda {

namespace detail {

struct MatrixRow {
  Shared<uint16_t> s;
  int i;
};
template <int kCount>
struct MatrixRegisters {
  uint32_t r[kCount];
};
template <int kCount, bool kTranspose>
struct LoadMatrices {
  template <class In, class Out>
  void operator()(In in, Out out) const {
    for (int m = 0; m < kCount; ++m) {
      uint16_t x[8][8];
      for (int row = 0; row < 8; ++row) {
        const MatrixRow& from = in(8 * m + row);
        if ((from.s.array.offset + 2 * static_cast<uint64_t>(from.i)) % 16)
          Executor::get().fail(
              cat("load_matrices of a row at {}[{}], which is not aligned to 16 bytes", from.s.array.name, from.i));
        const int giver = warp() * kWarp + 8 * m + row;
        std::memcpy(x[row], Executor::get().access(from.s.array, from.i, 8, Access::read, giver), 16);
      }
      for (int i = 0; i < kWarp; ++i) {
        const int g = i / 4, t = 2 * (i % 4);
        const uint16_t low = kTranspose ? x[t][g] : x[g][t], high = kTranspose ? x[t + 1][g] : x[g][t + 1];
        out(i).r[m] = low | static_cast<uint32_t>(high) << 16;
      }
    }
  }
};

template <class T>
struct Operands {
  FragmentA<T> a;
  FragmentB<T> b;
  FragmentD d;
};
template <class T>
float half_of(uint32_t r, int k) {
  return T::from_bits(static_cast<uint16_t>(r >> (16 * k)));
}
/// d += a * b. The sum of a call is exact up to one rounding; the tensor cores' own order is not documented.
template <class T>
struct Multiply {
  template <class In, class Out>
  void operator()(In in, Out out) const {
    constexpr int kDepth = std::is_same_v<T, tf32> ? 8 : 16;
    double a[16][kDepth], b[kDepth][8];
    for (int i = 0; i < kWarp; ++i) {
      const int g = i / 4, t = i % 4;
      const Operands<T>& x = in(i);
      if constexpr (std::is_same_v<T, tf32>) {
        const auto value = [](uint32_t r) { return __builtin_bit_cast(float, r & 0xFFFFE000u); };
        for (int j = 0; j < 4; ++j) a[g + 8 * (j % 2)][t + 4 * (j / 2)] = value(x.a.r[j]);
        for (int j = 0; j < 2; ++j) b[t + 4 * j][g] = value(x.b.r[j]);
      } else {
        for (int k = 0; k < 2; ++k) {
          for (int j = 0; j < 4; ++j) a[g + 8 * (j % 2)][2 * t + 8 * (j / 2) + k] = half_of<T>(x.a.r[j], k);
          for (int j = 0; j < 2; ++j) b[2 * t + 8 * j + k][g] = half_of<T>(x.b.r[j], k);
        }
      }
    }
    for (int i = 0; i < kWarp; ++i)
      for (int j = 0; j < 4; ++j) {
        const int row = i / 4 + 8 * (j / 2), column = 2 * (i % 4) + j % 2;
        double sum = in(i).d.v[j];
        for (int k = 0; k < kDepth; ++k) sum += a[row][k] * b[k][column];
        out(i).v[j] = static_cast<float>(sum);
      }
  }
};

}  // namespace detail

template <int kCount, bool kTranspose = false, class T>
void load_matrices(uint32_t (&r)[kCount], const Shared<T>& from, int i, Where where = Where::current()) {
  static_assert((kCount == 1 || kCount == 2 || kCount == 4) && sizeof(T) == 2);
  const auto out = warp_operation<detail::MatrixRegisters<kCount>>(
      "load_matrices", where, detail::MatrixRow{{from.array}, i}, detail::LoadMatrices<kCount, kTranspose>{});
  for (int m = 0; m < kCount; ++m) r[m] = out.r[m];
}

template <class T>
void mma(FragmentD& d, const FragmentA<T>& a, const FragmentB<T>& b, Where where = Where::current()) {
  d = warp_operation<FragmentD>("mma", where, detail::Operands<T>{a, b, d}, detail::Multiply<T>{});
}

/// Round to nearest, ties away from zero, as cvt.rna.tf32.f32 does.
inline uint32_t to_tf32(float x) {
  const uint32_t u = __builtin_bit_cast(uint32_t, x);
  return (u & 0x7F800000u) == 0x7F800000u ? u : (u + 0x1000u) & 0xFFFFE000u;
}

}  // namespace csml::cuda
