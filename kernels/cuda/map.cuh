// map: an elementwise kernel from a functor; and types for calls that move values without looking at them.
#pragma once

#include "kernels/cuda/launch.cuh"

namespace csml::cuda {

/// Calls op.apply<N>(i) for i = 0, N, 2N ..., then apply<1> for what is left.
template <int N, class Op>
KERNEL void map_kernel(Op op, int64_t n) {
  const int64_t packs = n / N;
  for (int64_t i = grid_thread(); i < packs; i += grid_threads()) op.template apply<N>(i * N);
  if constexpr (N > 1)
    for (int64_t i = packs * N + grid_thread(); i < n; i += grid_threads()) op.template apply<1>(i);
}

/// wide: the arrays allow packs of N.
template <int N, class Op>
void map(Context& context, const char* name, Op op, int64_t n, bool wide) {
  if (wide)
    launch(context, {.name = name, .grid = grid_for(context, ceil_div(n, N))}, map_kernel<N, Op>, op, n);
  else
    launch(context, {.name = name, .grid = grid_for(context, n)}, map_kernel<1, Op>, op, n);
}

/// f(T{}) with an unsigned type of `bytes`.
template <class F>
void with_size(size_t bytes, F&& f) {
  if (bytes == 1) return f(uint8_t{});
  if (bytes == 2) return f(uint16_t{});
  if (bytes == 4) return f(uint32_t{});
  return f(uint64_t{});
}

}  // namespace csml::cuda
