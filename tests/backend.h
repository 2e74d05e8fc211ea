// The backend under test: test programs that run on several take it from here.
#pragma once

#include <memory>
#include <set>
#include <string>

#include "engine/device.h"

namespace csml::test {

/// "cpu", or what CSML_TEST_BACKEND says: "simt" is the CUDA backend's kernels run on the host (tests/simt), any other
/// value a device as Device::open takes it.
std::string backend_under_test();
std::unique_ptr<Device> open_backend();
std::unique_ptr<Device> open_backend(const std::string& spec);

/// Calls of kernels/backend.h whose CUDA kernel does not exist yet. tests/kernels_test.cpp requires each to fail.
const std::set<std::string>& not_on_simt_yet();

/// Empty, or the first of the calls that the backend under test does not have yet: a test that needs them returns.
std::string missing_call(const std::set<std::string>& calls);

}  // namespace csml::test
