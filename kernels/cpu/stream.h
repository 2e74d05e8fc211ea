// Stores that bypass the caches, for outputs too large to stay there.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace csml::cpu {

/// Alignment that stream_row needs of its destination, and the multiple of floats it writes at once.
constexpr int64_t kStreamBytes = 64;

/// Outputs from this size on are streamed: an ordinary store would first read the line it is about to overwrite.
constexpr size_t kStreamMinBytes = size_t{4} << 20;

/// to[i] = from[i] for i < n, past the caches. Both 64-byte aligned, n a multiple of 16; end_stream() must follow on
/// the same thread before others read.
inline void stream_row(float* to, const float* from, int64_t n) {
#if defined(__AVX512F__)
  for (int64_t i = 0; i < n; i += 16) _mm512_stream_ps(to + i, _mm512_load_ps(from + i));
#elif defined(__AVX__)
  for (int64_t i = 0; i < n; i += 8) _mm256_stream_ps(to + i, _mm256_load_ps(from + i));
#elif defined(__SSE2__)
  for (int64_t i = 0; i < n; i += 4) _mm_stream_ps(to + i, _mm_load_ps(from + i));
#else
  std::memcpy(to, from, static_cast<size_t>(n) * sizeof(float));
#endif
}

/// Orders the streamed stores of this thread before its later ones.
inline void end_stream() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace csml::cpu
