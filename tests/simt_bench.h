// What the tests of the executor share: a place to launch kernels in, and what a failing launch says.
#pragma once

#define CSML_SIMT "tests/simt/device.h"
#include "kernels/cuda/launch.cuh"
#include "tests/simt/simt_backend.h"
#include "tests/test.h"

// After the project's headers: doctest's CHECK replaces that of kernels/check.h from here on.
#include <doctest/doctest.h>

namespace csml::test {

struct Bench {
  SimtBackend memory;
  cuda::Failure failure;
  cuda::Context context{memory, &failure, nullptr, 2, 90};

  /// What the launch fails with; empty if it does not.
  template <class... Params>
  std::string error(const cuda::Launch& how, void (*kernel)(Params...), std::type_identity_t<Params>... args) {
    try {
      cuda::launch(context, how, kernel, args...);
    } catch (const Error& e) { return e.what(); }
    return "";
  }
};

/// The text has all the parts, in order.
inline bool says(const std::string& text, std::initializer_list<const char*> parts) {
  size_t at = 0;
  for (const char* part : parts) {
    at = text.find(part, at);
    if (at == std::string::npos) return false;
  }
  return true;
}
inline void check_says(const std::string& text, std::initializer_list<const char*> parts) {
  CHECK_MESSAGE(says(text, parts), "said: " << text);
}

}  // namespace csml::test
