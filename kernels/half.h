// bf16 and f16: 16-bit storage types of our own, the same on host and device. Arithmetic happens in float: both convert
// to float exactly and from float with round to nearest, ties to even. NaN stays NaN (payload cut, made quiet).
#pragma once

#include <cstdint>

#include "kernels/random.h"
#include "kernels/types.h"

namespace csml {

namespace detail {

CSML_HD constexpr uint32_t bits_of(float x) { return __builtin_bit_cast(uint32_t, x); }
CSML_HD constexpr float float_of(uint32_t bits) { return __builtin_bit_cast(float, bits); }

CSML_HD constexpr uint16_t to_bf16(float x) {
  const uint32_t u = bits_of(x);
  if ((u & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<uint16_t>(u >> 16 | 0x40u);
  return static_cast<uint16_t>((u + 0x7FFFu + (u >> 16 & 1u)) >> 16);
}

CSML_HD constexpr uint16_t to_f16(float x) {
  const uint32_t u = bits_of(x), sign = u >> 16 & 0x8000u, a = u & 0x7FFFFFFFu;
  uint32_t h = 0;
  if (a > 0x7F800000u) {
    h = 0x7E00u | (a >> 13 & 0x3FFu);
  } else if (a >= 0x47800000u) {  // 2^16 and above
    h = 0x7C00u;
  } else if (a >= 0x38800000u) {  // 2^-14: normal; rounding may carry into infinity, which is right
    const uint32_t b = a - 0x38000000u;
    h = (b + 0xFFFu + (b >> 13 & 1u)) >> 13;
  } else if (a >= 0x33000000u) {  // 2^-25: subnormal, a multiple of 2^-24
    const uint32_t mantissa = (a & 0x7FFFFFu) | 0x800000u, shift = 126u - (a >> 23);
    const uint32_t rest = mantissa & ((1u << shift) - 1), half = 1u << (shift - 1);
    h = mantissa >> shift;
    h += rest > half || (rest == half && (h & 1u));
  }
  return static_cast<uint16_t>(sign | h);
}

CSML_HD constexpr float from_f16(uint16_t bits) {
  const uint32_t sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 0x1Fu, mantissa = bits & 0x3FFu;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * (1.0f / 16777216.0f);
    return sign ? -magnitude : magnitude;
  }
  if (exponent == 31) return float_of(sign | 0x7F800000u | mantissa << 13);
  return float_of(sign | (exponent + 112u) << 23 | mantissa << 13);
}

}  // namespace detail

/// bfloat16: sign, 8 bits of exponent, 7 of mantissa. Relative rounding error at most 2^-8.
struct bf16 {
  uint16_t bits;

  bf16() = default;
  CSML_HD explicit constexpr bf16(float x) : bits(0) {
#ifdef __CUDA_ARCH__
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
#else
    bits = detail::to_bf16(x);
#endif
  }
  CSML_HD constexpr operator float() const { return detail::float_of(static_cast<uint32_t>(bits) << 16); }
  CSML_HD static constexpr bf16 from_bits(uint16_t b) {
    bf16 x{};
    x.bits = b;
    return x;
  }
};

/// IEEE binary16: sign, 5 bits of exponent, 10 of mantissa. Relative rounding error at most 2^-11 in [2^-14, 65504];
/// infinity from 65520 on, steps of 2^-24 below 2^-14.
struct f16 {
  uint16_t bits;

  f16() = default;
  CSML_HD explicit constexpr f16(float x) : bits(0) {
#ifdef __CUDA_ARCH__
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
#else
    bits = detail::to_f16(x);
#endif
  }
  CSML_HD constexpr operator float() const {
#ifdef __CUDA_ARCH__
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
#else
    return detail::from_f16(bits);
#endif
  }
  CSML_HD static constexpr f16 from_bits(uint16_t b) {
    f16 x{};
    x.bits = b;
    return x;
  }
};

template <>
struct dtype_of<bf16> {
  static constexpr DType value = DType::bf16;
};
template <>
struct dtype_of<f16> {
  static constexpr DType value = DType::f16;
};

}  // namespace csml
