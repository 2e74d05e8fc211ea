// The backend under test: test programs that run on several take it from here.
#pragma once

#include <memory>
#include <string>

#include "engine/device.h"

namespace csml::test {

/// "cpu", or what CSML_TEST_BACKEND says: "simt" is the CUDA backend's kernels run on the host (tests/simt), any other
/// value a device as Device::open takes it.
std::string backend_under_test();
std::unique_ptr<Device> open_backend();
std::unique_ptr<Device> open_backend(const std::string& spec);
/// The CUDA kernels, which take 16 bits: on the host, where backend_under_test() is the CPU.
std::unique_ptr<Device> open_cuda_kernels();

}  // namespace csml::test
