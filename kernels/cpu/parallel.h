// parallel_for: one loop cut into contiguous parts, one per OpenMP thread.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>

namespace csml::cpu {

/// f(begin, end) on contiguous parts of [0, n), one part per OpenMP thread: the same parts for the same thread count.
/// Runs in the caller where n <= grain (too little work to share) or inside another parallel region. f must not throw.
template <class F>
void parallel_for(int64_t n, int64_t grain, F&& f) {
  if (n <= 0) return;
  const int threads = omp_get_max_threads();
  if (threads == 1 || n <= grain || omp_in_parallel()) {
    f(int64_t{0}, n);
    return;
  }
  // Always the full team: libgomp ends the threads that a smaller team leaves out and starts them again later.
#pragma omp parallel num_threads(threads)
  {
    const int64_t parts = std::min<int64_t>(omp_get_num_threads(), (n + grain - 1) / std::max<int64_t>(grain, 1));
    const int64_t i = omp_get_thread_num();
    if (i < parts) f(n * i / parts, n * (i + 1) / parts);
  }
}

}  // namespace csml::cpu
