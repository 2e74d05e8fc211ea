// What vendor libraries do on a GPU, by the CPU's kernels: convolution and matrix product, in 16 bits too, with sums in
// f32. Results are rounded where cuDNN and cuBLASLt round them (kernels/cuda/conv.cpp, matmul.cpp), f32 factors to TF32
// with CSML_TF32=1.
#pragma once

#include "kernels/backend.h"

namespace csml::test::library {

void conv2d(const Backend::Conv2d&);
void conv2d_grad_input(const Backend::Conv2dGradInput&);
/// 16-bit factors give a 16-bit gradient, which is then added in f32; those of 1x1 filters are products, in f32.
void conv2d_grad_weight(const Backend::Conv2dGradWeight&);
void matmul(const Backend::Matmul&);

}  // namespace csml::test::library
