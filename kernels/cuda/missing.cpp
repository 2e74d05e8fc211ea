// TEMPORARY: calls whose kernels are not written yet. Whoever writes a family's .cu file removes its calls here.
#include "kernels/cuda/kernels.h"

namespace csml::cuda {

namespace {

[[noreturn]] void missing(const char* call) {
  throw Error(cat("{}: the CUDA backend's kernel is not written yet; use --device cpu", call));
}

}  // namespace

void row_dot(Context&, const Backend::RowDot&) { missing("row_dot"); }
void scale_rows(Context&, const Backend::ScaleRows&) { missing("scale_rows"); }
void multi_positive(Context&, const Backend::MultiPositive&) { missing("multi_positive"); }
void gather_window(Context&, const Backend::GatherWindow&) { missing("gather_window"); }
void gather_window_grad(Context&, const Backend::GatherWindowGrad&) { missing("gather_window_grad"); }
void best_window(Context&, const Backend::BestWindow&) { missing("best_window"); }

}  // namespace csml::cuda
