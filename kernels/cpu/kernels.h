// The CPU's kernels: one function per call of kernels/backend.h, which says what each computes.
#pragma once

#include "kernels/backend.h"

namespace csml::cpu {

// elementwise.cpp
void fill(const Backend::Fill&);
void copy(const Backend::Copy&);
void axpy(const Backend::Axpy&);
void relu(const Backend::Relu&);
void relu_grad(const Backend::ReluGrad&);
void column_sum(const Backend::ColumnSum&);
void gather(const Backend::Gather&);
// conv.cpp (oneDNN)
void conv2d(const Backend::Conv2d&);
void conv2d_grad_input(const Backend::Conv2dGradInput&);
void conv2d_grad_weight(const Backend::Conv2dGradWeight&);
// matmul.cpp (oneDNN)
void matmul(const Backend::Matmul&);
// pool.cpp
void max_pool(const Backend::MaxPool&);
void max_pool_grad(const Backend::MaxPoolGrad&);
void global_avg_pool(const Backend::GlobalAvgPool&);
void global_avg_pool_grad(const Backend::GlobalAvgPoolGrad&);
// batch_norm.cpp
void batch_norm(const Backend::BatchNorm&);
void batch_norm_grad(const Backend::BatchNormGrad&);
void batch_norm_inference(const Backend::BatchNormInference&);
// batch_norm_parts.cpp
void batch_norm_moments(const Backend::BatchNormMoments&);
void batch_norm_merge(const Backend::BatchNormMerge&);
void batch_norm_apply(const Backend::BatchNormApply&);
void batch_norm_grad_sums(const Backend::BatchNormGradSums&);
void batch_norm_grad_apply(const Backend::BatchNormGradApply&);
// contrast.cpp
void l2_normalize(const Backend::L2Normalize&);
void l2_normalize_grad(const Backend::L2NormalizeGrad&);
void info_nce(const Backend::InfoNce&);
void cross_entropy(const Backend::CrossEntropy&);
// multi_positive.cpp
void row_dot(const Backend::RowDot&);
void scale_rows(const Backend::ScaleRows&);
void multi_positive(const Backend::MultiPositive&);
// window.cpp
void gather_window(const Backend::GatherWindow&);
void gather_window_grad(const Backend::GatherWindowGrad&);
void best_window(const Backend::BestWindow&);
// topk.cpp
void top_k(const Backend::TopK&);
// optim.cpp
void all_finite(const Backend::AllFinite&);
void sgd(const Backend::Sgd&);
void lars(const Backend::Lars&);
void adamw(const Backend::AdamW&);
void ema(const Backend::Ema&);
void update_loss_scale(const Backend::UpdateLossScale&);
void ring_write(const Backend::RingWrite&);
// augment.cpp
void augment(const Backend::Augment&);
void cut_mix(const Backend::CutMix&);

}  // namespace csml::cpu
