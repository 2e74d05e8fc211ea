#include "tests/backend.h"

#include <cstdlib>

#include "tests/simt/simt_backend.h"

namespace csml::test {

std::string backend_under_test() {
  const char* name = std::getenv("CSML_TEST_BACKEND");
  return name ? name : "cpu";
}

std::unique_ptr<Device> open_backend(const std::string& spec) {
  return spec == "simt" ? std::make_unique<Device>(std::make_unique<SimtBackend>()) : Device::open(spec);
}

std::unique_ptr<Device> open_backend() { return open_backend(backend_under_test()); }

std::unique_ptr<Device> open_cuda_kernels() {
  const std::string spec = backend_under_test();
  return open_backend(spec == "cpu" ? "simt" : spec);
}

}  // namespace csml::test
