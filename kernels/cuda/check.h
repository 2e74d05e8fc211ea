// CUDA_CHECK, CUDNN_CHECK, CUBLAS_CHECK: every call of a vendor's library goes through one. On failure they throw
// csml::Error with the call, the place, the code and its text.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <cudnn.h>

#include "kernels/check.h"

namespace csml::cuda {

/// The code is in the error's text as "cudaErrorNoDevice (100)".
void check(cudaError_t status, const char* call, const char* file, int line);
void check(cudnnStatus_t status, const char* call, const char* file, int line);
void check(cublasStatus_t status, const char* call, const char* file, int line);

}  // namespace csml::cuda

#define CUDA_CHECK(call) ::csml::cuda::check((call), #call, __FILE_NAME__, __LINE__)
#define CUDNN_CHECK(call) ::csml::cuda::check((call), #call, __FILE_NAME__, __LINE__)
#define CUBLAS_CHECK(call) ::csml::cuda::check((call), #call, __FILE_NAME__, __LINE__)
