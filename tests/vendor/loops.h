// What the stand-ins for the vendor libraries share: elements of three types in plain memory.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/half.h"

namespace csml::test {

enum class Element { f32, bf16, f16 };

inline double load(const void* data, Element type, int64_t i) {
  if (type == Element::f32) return static_cast<const float*>(data)[i];
  const uint16_t bits = static_cast<const uint16_t*>(data)[i];
  return type == Element::bf16 ? static_cast<float>(bf16::from_bits(bits)) : static_cast<float>(f16::from_bits(bits));
}

inline void store(void* data, Element type, int64_t i, double value) {
  const auto x = static_cast<float>(value);
  if (type == Element::f32)
    static_cast<float*>(data)[i] = x;
  else
    static_cast<uint16_t*>(data)[i] = type == Element::bf16 ? bf16(x).bits : f16(x).bits;
}

}  // namespace csml::test
