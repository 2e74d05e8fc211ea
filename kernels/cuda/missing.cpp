// TEMPORARY: calls whose kernels are not written yet. Whoever writes a family's .cu file removes its calls here.
#include "kernels/cuda/kernels.h"

namespace csml::cuda {

namespace {

[[noreturn]] void missing(const char* call) {
  throw Error(cat("{}: the CUDA backend's kernel is not written yet; use --device cpu", call));
}

}  // namespace

void max_pool(Context&, const Backend::MaxPool&) { missing("max_pool"); }
void max_pool_grad(Context&, const Backend::MaxPoolGrad&) { missing("max_pool_grad"); }
void global_avg_pool(Context&, const Backend::GlobalAvgPool&) { missing("global_avg_pool"); }
void global_avg_pool_grad(Context&, const Backend::GlobalAvgPoolGrad&) { missing("global_avg_pool_grad"); }
void batch_norm(Context&, const Backend::BatchNorm&) { missing("batch_norm"); }
void batch_norm_grad(Context&, const Backend::BatchNormGrad&) { missing("batch_norm_grad"); }
void batch_norm_inference(Context&, const Backend::BatchNormInference&) { missing("batch_norm_inference"); }
void l2_normalize(Context&, const Backend::L2Normalize&) { missing("l2_normalize"); }
void l2_normalize_grad(Context&, const Backend::L2NormalizeGrad&) { missing("l2_normalize_grad"); }
void info_nce(Context&, const Backend::InfoNce&) { missing("info_nce"); }
void cross_entropy(Context&, const Backend::CrossEntropy&) { missing("cross_entropy"); }
void top_k(Context&, const Backend::TopK&) { missing("top_k"); }
void all_finite(Context&, const Backend::AllFinite&) { missing("all_finite"); }
void sgd(Context&, const Backend::Sgd&) { missing("sgd"); }
void lars(Context&, const Backend::Lars&) { missing("lars"); }
void adamw(Context&, const Backend::AdamW&) { missing("adamw"); }
void ema(Context&, const Backend::Ema&) { missing("ema"); }
void ring_write(Context&, const Backend::RingWrite&) { missing("ring_write"); }
void augment(Context&, const Backend::Augment&) { missing("augment"); }
void cut_mix(Context&, const Backend::CutMix&) { missing("cut_mix"); }
void row_dot(Context&, const Backend::RowDot&) { missing("row_dot"); }
void scale_rows(Context&, const Backend::ScaleRows&) { missing("scale_rows"); }
void multi_positive(Context&, const Backend::MultiPositive&) { missing("multi_positive"); }
void gather_window(Context&, const Backend::GatherWindow&) { missing("gather_window"); }
void gather_window_grad(Context&, const Backend::GatherWindowGrad&) { missing("gather_window_grad"); }
void best_window(Context&, const Backend::BestWindow&) { missing("best_window"); }

}  // namespace csml::cuda
