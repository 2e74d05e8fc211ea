// What the kernels built on oneDNN show to other kernels and to tests; the vendor's header stays in their sources.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/backend.h"

namespace csml::cpu {

/// What computes this call: oneDNN's name for its kernel, e.g. "brgconv:avx512_core", or "sgemm over windows". A name
/// that contains "ref" is an order of magnitude slower.
std::string conv_implementation(const Backend::Conv2d&);
std::string conv_implementation(const Backend::Conv2dGradInput&);
std::string conv_implementation(const Backend::Conv2dGradWeight&);

/// c[i,j] = alpha * sum_l a'[i,l] * b'[l,j] + beta * c[i,j]; row-major, a' [m,k] and b' [k,n] are a and b or their
/// transposes, ld* = distance of stored rows in elements. Runs on all threads. Throws csml::Error if oneDNN refuses.
void sgemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha, const float* a,
           int64_t lda, const float* b, int64_t ldb, float beta, float* c, int64_t ldc);

}  // namespace csml::cpu
