// The GPU's own kernels: one function per call of kernels/backend.h, which says what each computes. Convolution and
// matrix product are the vendor libraries' and not in this list. `x`, `y`, `dx` ... of activations may be f32, bf16 or
// f16 where the family's source says so; parameters, statistics, losses and state are f32.
#pragma once

#include "kernels/cuda/context.h"

namespace csml::cuda {

// elementwise.cu
void fill(Context&, const Backend::Fill&);
void copy(Context&, const Backend::Copy&);
void axpy(Context&, const Backend::Axpy&);
void relu(Context&, const Backend::Relu&);
void relu_grad(Context&, const Backend::ReluGrad&);
void column_sum(Context&, const Backend::ColumnSum&);
void gather(Context&, const Backend::Gather&);
// pool.cu
void max_pool(Context&, const Backend::MaxPool&);
void max_pool_grad(Context&, const Backend::MaxPoolGrad&);
void global_avg_pool(Context&, const Backend::GlobalAvgPool&);
void global_avg_pool_grad(Context&, const Backend::GlobalAvgPoolGrad&);
// batch_norm.cu
void batch_norm(Context&, const Backend::BatchNorm&);
void batch_norm_inference(Context&, const Backend::BatchNormInference&);
void batch_norm_moments(Context&, const Backend::BatchNormMoments&);
void batch_norm_merge(Context&, const Backend::BatchNormMerge&);
void batch_norm_apply(Context&, const Backend::BatchNormApply&);
// batch_norm_grad.cu
void batch_norm_grad(Context&, const Backend::BatchNormGrad&);
void batch_norm_grad_sums(Context&, const Backend::BatchNormGradSums&);
void batch_norm_grad_apply(Context&, const Backend::BatchNormGradApply&);
// l2_normalize.cu
void l2_normalize(Context&, const Backend::L2Normalize&);
void l2_normalize_grad(Context&, const Backend::L2NormalizeGrad&);
// contrast.cu
void info_nce(Context&, const Backend::InfoNce&);
// cross_entropy.cu
void cross_entropy(Context&, const Backend::CrossEntropy&);
// topk.cu
void top_k(Context&, const Backend::TopK&);
// optim.cu
void all_finite(Context&, const Backend::AllFinite&);
void sgd(Context&, const Backend::Sgd&);
void lars(Context&, const Backend::Lars&);
void adamw(Context&, const Backend::AdamW&);
void ema(Context&, const Backend::Ema&);
void update_loss_scale(Context&, const Backend::UpdateLossScale&);
void ring_write(Context&, const Backend::RingWrite&);
// augment.cu
void augment(Context&, const Backend::Augment&);
void cut_mix(Context&, const Backend::CutMix&);
// multi_positive.cu
void row_dot(Context&, const Backend::RowDot&);
void scale_rows(Context&, const Backend::ScaleRows&);
void multi_positive(Context&, const Backend::MultiPositive&);
// window.cu
void gather_window(Context&, const Backend::GatherWindow&);
void gather_window_grad(Context&, const Backend::GatherWindowGrad&);
void best_window(Context&, const Backend::BestWindow&);

}  // namespace csml::cuda
