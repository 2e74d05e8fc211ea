// bf16 and f16: every bit pattern, and rounding against doubles.
#include "kernels/half.h"

#include "tests/test.h"

// After the project's headers: doctest's CHECK replaces that of kernels/check.h from here on.
#include <doctest/doctest.h>

using namespace csml;
using namespace csml::test;

namespace {

/// The value of a pattern of 1 + exponent_bits + mantissa_bits bits after IEEE 754, in double.
double value_of(uint32_t bits, int exponent_bits, int mantissa_bits) {
  const double sign = bits >> 15 ? -1 : 1;
  const int most = (1 << exponent_bits) - 1, bias = most / 2;
  const int exponent = static_cast<int>(bits >> mantissa_bits) & most;
  const double mantissa = bits & ((1u << mantissa_bits) - 1);
  if (exponent == most) return mantissa == 0 ? sign * INFINITY : NAN;
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
  return sign * std::ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
}

bool same(double a, double b) {
  return (std::isnan(a) && std::isnan(b)) || (a == b && std::signbit(a) == std::signbit(b));
}

/// All 65,536 patterns, then around every value and every midpoint of neighbours.
template <class T>
void check_type(int exponent_bits, int mantissa_bits) {
  const auto reference = [=](uint32_t bits) { return value_of(bits, exponent_bits, mantissa_bits); };
  int wrong = 0;
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const T x = T::from_bits(static_cast<uint16_t>(bits));
    const float f = x;
    if (!same(f, reference(bits))) ++wrong;
    const T back(f);
    const uint32_t quiet = std::isnan(f) ? 1u << (mantissa_bits - 1) : 0;
    if (back.bits != (bits | quiet)) ++wrong;
  }
  CHECK(wrong == 0);

  const uint32_t infinity = ((1u << exponent_bits) - 1) << mantissa_bits;
  for (uint32_t bits = 0; bits < infinity; ++bits) {
    // The step to infinity is that of the largest finite values.
    const double low = reference(bits);
    const double high = bits + 1 < infinity ? reference(bits + 1) : low + (low - reference(bits - 1));
    const double middle = (low + high) / 2;
    const float at = static_cast<float>(middle);  // exact but below the smallest f32, where bf16's middle is no f32
    const float around[] = {std::nextafter(static_cast<float>(low), INFINITY), std::nextafter(at, 0.f), at,
                            std::nextafter(at, INFINITY)};
    for (const float f : around) {
      const double x = f;
      uint32_t want = x - low < high - x ? bits : bits + 1;
      if (x - low == high - x) want = bits + (bits & 1);
      if (T(f).bits != want || T(-f).bits != (want | 0x8000u)) ++wrong;
    }
  }
  CHECK(wrong == 0);

  Random random(3, Purpose::test);
  for (int i = 0; i < 1000000; ++i) {  // nearest of the neighbours for any f32, found by search
    const uint32_t pattern = random.bits();
    float f;
    std::memcpy(&f, &pattern, sizeof f);
    const T rounded(f);
    if (std::isnan(f)) {
      if (!std::isnan(static_cast<float>(rounded))) ++wrong;
      continue;
    }
    const uint32_t magnitude = rounded.bits & 0x7FFFu;
    if (std::signbit(f) != static_cast<bool>(rounded.bits >> 15) || magnitude > infinity) ++wrong;
    if (magnitude >= infinity) continue;
    const double error = std::abs(static_cast<double>(f) - reference(rounded.bits));
    for (const uint32_t other : {magnitude - 1, magnitude + 1})
      if (other < infinity && std::abs(std::abs(static_cast<double>(f)) - reference(other)) < error) ++wrong;
  }
  CHECK(wrong == 0);
}

}  // namespace

TEST_CASE("bf16") {
  check_type<bf16>(8, 7);
  static_assert(static_cast<float>(bf16(1.00390625f)) == 1.0f);  // 1 + 2^-8 is a tie: to even
  static_assert(size_of(dtype_of<bf16>::value) == sizeof(bf16));
}

TEST_CASE("f16") {
  check_type<f16>(5, 10);
  static_assert(f16(65519.0f).bits == 0x7BFF && f16(65520.0f).bits == 0x7C00);
  static_assert(f16(1e30f).bits == 0x7C00 && f16(-1e30f).bits == 0xFC00);
  static_assert(f16(5.9604645e-8f).bits == 1 && f16(2.9802322e-8f).bits == 0);  // 2^-24; 2^-25 is a tie, to even
  static_assert(size_of(dtype_of<f16>::value) == sizeof(f16));
}
