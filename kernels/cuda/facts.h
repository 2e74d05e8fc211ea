// What this machine has of CUDA. Opens no card for work: it asks the driver and loads cuDNN and cuBLASLt.
#pragma once

#include "kernels/facts.h"

namespace csml::cuda {

CudaFacts facts();
/// A line for each library that is older than the one csml was built with.
std::vector<std::string> library_warnings();
/// Cards that the driver shows to this process; 0 without a driver, or where the first cannot be used.
int usable_cards();

}  // namespace csml::cuda
