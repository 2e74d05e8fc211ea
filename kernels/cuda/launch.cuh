// What every .cu file is written against. nvcc compiles it over device.cuh for the GPU; g++ compiles the same sources
// over the header named by CSML_SIMT (tests/simt/device.h), where an executor on the host runs the kernels and stops at
// what a GPU would let pass: see "How the kernels are tested" in docs/architecture.md.
//
// Primitives (identical in both): qualifiers KERNEL, KERNEL_BOUNDS(threads, blocks), DEVICE;
//   thread(), lane(), warp(), block_threads(), block(), grid()      blocks are one-dimensional, whole warps
//   sync_block(), sync_warp()                                       every thread of the block / warp must arrive
//   shuffle(v, lane), shuffle_xor, shuffle_up, shuffle_down         4- and 8-byte values
//   warp_ballot(yes), warp_any, warp_all                            like shuffles for whole warps; they do not order
//                                                                   memory: sync_warp() does
//   SHARED(type, name, count)                                       a static shared array, a Shared<type> called name,
//       aligned to 16 bytes
//   dynamic_shared<T>(name, byte_offset, count)                     a part of the launch's shared_bytes
//   Shared<T>: s[i] (write `T x = s[i]`, not auto), s.slice(begin, count)
//   load_pack<N>(pointer), store_pack(pointer, pack), load_pack<N>(shared, i), store_pack(shared, i, pack)
//   atomic_add, atomic_max, atomic_cas on (pointer, ...) or (shared, i, ...): they return the old value
//   copy_async<bytes>(shared, i, pointer, valid), copy_commit(), copy_wait<pending>()       cp.async: 4, 8 or 16 bytes,
//       zeros where not valid; the data is there for the copying thread after its wait, for others after a barrier too
//   load_matrices<1|2|4, transpose>(registers, shared, i)           ldmatrix: lanes 8m..8m+7 give the rows of matrix m
//   mma(d, a, b), to_tf32(x)                                        layouts: values.h
//   launch(context, {.name = "relu", .grid = {blocks}, .threads = 256, .shared_bytes = 0}, kernel<T>, arguments...)
// Built on them below: warp and block reductions, widths of vector access, dispatch on element types, reports.
#pragma once

#ifdef __CUDACC__  // nvcc 13 cannot evaluate fmt 9's check of format strings; the C++ compiler does that
#define FMT_CONSTEVAL
#define FMT_USE_CONSTEXPR 1
#endif

#include <cmath>
#include <initializer_list>
#include <limits>
#include <type_traits>

#include "kernels/cuda/kernels.h"
#include "kernels/cuda/values.h"

#ifdef CSML_SIMT
#include CSML_SIMT
#else
#include "kernels/cuda/device.cuh"
#endif

#ifdef __CUDACC__  // before a loop whose index picks registers
#define CSML_UNROLL _Pragma("unroll")
#else
#define CSML_UNROLL
#endif

namespace csml::cuda {

template <class T>
CSML_HD constexpr T max(T a, T b) {
  return a < b ? b : a;
}
template <class T>
CSML_HD constexpr T min(T a, T b) {
  return b < a ? b : a;
}
CSML_HD constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ---- reductions: every lane or thread gets the result, whose order of addition is fixed
// ------------------------------

template <class T>
DEVICE T warp_sum(T x) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
  return x;
}
template <class T>
DEVICE T warp_max(T x) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) x = max(x, shuffle_xor(x, mask));
  return x;
}
/// Over the block. Contains barriers; may be called again at once.
template <class T>
DEVICE T block_sum(T x) {
  SHARED(T, partial, kWarp);
  x = warp_sum(x);
  if (lane() == 0) partial[warp()] = x;
  sync_block();
  T sum = 0;
  for (int i = 0; i < block_threads() / kWarp; ++i) sum += T(partial[i]);
  sync_block();
  return sum;
}
template <class T>
DEVICE T block_max(T x) {
  SHARED(T, partial, kWarp);
  x = warp_max(x);
  if (lane() == 0) partial[warp()] = x;
  sync_block();
  T most = partial[0];
  for (int i = 1; i < block_threads() / kWarp; ++i) most = max(most, T(partial[i]));
  sync_block();
  return most;
}

// ---- grid-stride loops ----------------------------------------------------------------------------------------------

/// for (int64_t i = grid_thread(); i < n; i += grid_threads()): every i once, over a grid with x alone.
DEVICE int64_t grid_thread() { return static_cast<int64_t>(block().x) * block_threads() + thread(); }
DEVICE int64_t grid_threads() { return static_cast<int64_t>(grid().x) * block_threads(); }

/// Blocks for such a loop over n items: one thread to an item, until every multiprocessor has 2048 threads.
inline Grid grid_for(const Context& context, int64_t n, int threads = 256) {
  return {.x = min(ceil_div(n, threads), int64_t{context.multiprocessors()} * (2048 / threads))};
}

// ---- host side ------------------------------------------------------------------------------------------------------

/// f(T{}) with T = float, bf16 or f16.
template <class F>
void with_float_type(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32:
      return f(float{});
    case DType::bf16:
      return f(bf16{});
    case DType::f16:
      return f(f16{});
    default:
      throw Error(cat("element type {}: must be f32, bf16 or f16", name_of(dtype)));
  }
}

/// Whether vectors of `bytes` may be used from data on. Arrays may begin anywhere (slices, flat buffers), so every
/// vectorised kernel has a scalar form.
inline bool aligned(const void* data, size_t bytes = 16) { return reinterpret_cast<uintptr_t>(data) % bytes == 0; }

template <int N>
using Width = std::integral_constant<int, N>;

/// f(T{}, Width<N>{}) for rows of `columns` elements of a float type T: N of them are 16 bytes where rows and arrays
/// (null: not given) are aligned to that, else N is 1.
template <class F>
void with_width(DType dtype, int64_t columns, std::initializer_list<const void*> arrays, F&& f) {
  with_float_type(dtype, [&]<class T>(T) {
    bool wide = columns % kPack<T> == 0;
    for (const void* array : arrays) wide = wide && aligned(array);
    if (wide)
      f(T{}, Width<kPack<T>>{});
    else
      f(T{}, Width<1>{});
  });
}

/// Typed pointer of an array that need not be given.
template <class T, class AnyView>
auto pointer_or_null(const AnyView& v) {
  return v ? v.template as<T>() : nullptr;
}

inline void check_same(const char* op, const ConstView& x, const ConstView& y) {
  CHECK(x.shape == y.shape, "{}: shapes {} and {} differ", op, x.shape.text(), y.shape.text());
}

/// Limits of a launch, on every card of capability 8.0 and newer but for shared memory (kMaxSharedBytes).
inline void check_launch(const Launch& how) {
  constexpr int64_t kMaxX = std::numeric_limits<int32_t>::max(), kMaxYZ = 65535;
  CHECK(how.grid.x >= 0 && how.grid.x <= kMaxX && how.grid.y >= 0 && how.grid.y <= kMaxYZ && how.grid.z >= 0 &&
            how.grid.z <= kMaxYZ,
        "CUDA kernel {}: grid of {} x {} x {} blocks", how.name, how.grid.x, how.grid.y, how.grid.z);
  CHECK(how.threads >= kWarp && how.threads <= 1024 && how.threads % kWarp == 0,
        "CUDA kernel {}: {} threads to a block; must be a multiple of {} up to 1024", how.name, how.threads, kWarp);
  CHECK(how.shared_bytes <= kMaxSharedBytes, "CUDA kernel {}: {} bytes of shared memory, at most {}", how.name,
        how.shared_bytes, kMaxSharedBytes);
}

// ---- reports --------------------------------------------------------------------------------------------------------

/// From a kernel: keeps the first failure of the stream; the backend throws it when it next waits for the stream.
DEVICE void report(Failure* failure, Failure::What what, int64_t at, int64_t value, int64_t limit) {
  if (atomic_cas(&failure->what, int32_t{Failure::none}, int32_t{what}) != Failure::none) return;
  failure->at = static_cast<int32_t>(at);
  failure->value = static_cast<int32_t>(value);
  failure->limit = static_cast<int32_t>(limit);
}

}  // namespace csml::cuda
