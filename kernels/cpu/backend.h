// CpuBackend: plain memory, calls executed at once, recording as a list of calls with their arguments.
#pragma once

#include <vector>

#include "kernels/backend.h"
#include "kernels/cpu/call_log.h"
#include "kernels/cpu/kernels.h"

namespace csml {

class CpuBackend : public Backend {
 public:
  const char* name() const override { return "cpu"; }

  void* allocate(size_t bytes) override;
  void release(void* data) override;
  void upload(void* device, const void* host, size_t bytes) override;
  void download(void* host, const void* device, size_t bytes) override;
  void synchronize() override {}
  void* stream() const override { return nullptr; }
  std::unique_ptr<Replay> record(const std::function<void()>& work) override;
  void host_call(const std::function<void()>& call) override;

  /// Calls and allocations are also written into `log` (not owned; null: no longer). A replay's calls are not: they are
  /// those of its recording.
  void log_calls(CallLog* log) { log_ = log; }

  void fill(const Fill& a) override { run(cpu::fill, a); }
  void copy(const Copy& a) override { run(cpu::copy, a); }
  void axpy(const Axpy& a) override { run(cpu::axpy, a); }
  void relu(const Relu& a) override { run(cpu::relu, a); }
  void relu_grad(const ReluGrad& a) override { run(cpu::relu_grad, a); }
  void column_sum(const ColumnSum& a) override { run(cpu::column_sum, a); }
  void gather(const Gather& a) override { run(cpu::gather, a); }
  void conv2d(const Conv2d& a) override { run(cpu::conv2d, a); }
  void conv2d_grad_input(const Conv2dGradInput& a) override { run(cpu::conv2d_grad_input, a); }
  void conv2d_grad_weight(const Conv2dGradWeight& a) override { run(cpu::conv2d_grad_weight, a); }
  void matmul(const Matmul& a) override { run(cpu::matmul, a); }
  void max_pool(const MaxPool& a) override { run(cpu::max_pool, a); }
  void max_pool_grad(const MaxPoolGrad& a) override { run(cpu::max_pool_grad, a); }
  void global_avg_pool(const GlobalAvgPool& a) override { run(cpu::global_avg_pool, a); }
  void global_avg_pool_grad(const GlobalAvgPoolGrad& a) override { run(cpu::global_avg_pool_grad, a); }
  void batch_norm(const BatchNorm& a) override { run(cpu::batch_norm, a); }
  void batch_norm_grad(const BatchNormGrad& a) override { run(cpu::batch_norm_grad, a); }
  void batch_norm_inference(const BatchNormInference& a) override { run(cpu::batch_norm_inference, a); }
  void batch_norm_moments(const BatchNormMoments& a) override { run(cpu::batch_norm_moments, a); }
  void batch_norm_merge(const BatchNormMerge& a) override { run(cpu::batch_norm_merge, a); }
  void batch_norm_apply(const BatchNormApply& a) override { run(cpu::batch_norm_apply, a); }
  void batch_norm_grad_sums(const BatchNormGradSums& a) override { run(cpu::batch_norm_grad_sums, a); }
  void batch_norm_grad_apply(const BatchNormGradApply& a) override { run(cpu::batch_norm_grad_apply, a); }
  void l2_normalize(const L2Normalize& a) override { run(cpu::l2_normalize, a); }
  void l2_normalize_grad(const L2NormalizeGrad& a) override { run(cpu::l2_normalize_grad, a); }
  void info_nce(const InfoNce& a) override { run(cpu::info_nce, a); }
  void cross_entropy(const CrossEntropy& a) override { run(cpu::cross_entropy, a); }
  void top_k(const TopK& a) override { run(cpu::top_k, a); }
  void row_dot(const RowDot& a) override { run(cpu::row_dot, a); }
  void scale_rows(const ScaleRows& a) override { run(cpu::scale_rows, a); }
  void multi_positive(const MultiPositive& a) override { run(cpu::multi_positive, a); }
  void gather_window(const GatherWindow& a) override { run(cpu::gather_window, a); }
  void gather_window_grad(const GatherWindowGrad& a) override { run(cpu::gather_window_grad, a); }
  void best_window(const BestWindow& a) override { run(cpu::best_window, a); }
  void all_finite(const AllFinite& a) override { run(cpu::all_finite, a); }
  void sgd(const Sgd& a) override { run(cpu::sgd, a); }
  void lars(const Lars& a) override { run(cpu::lars, a); }
  void adamw(const AdamW& a) override { run(cpu::adamw, a); }
  void ema(const Ema& a) override { run(cpu::ema, a); }
  void update_loss_scale(const UpdateLossScale& a) override { run(cpu::update_loss_scale, a); }
  void ring_write(const RingWrite& a) override { run(cpu::ring_write, a); }
  void augment(const Augment& a) override { run(cpu::augment, a); }
  void cut_mix(const CutMix& a) override { run(cpu::cut_mix, a); }

 private:
  using Tape = std::vector<std::function<void()>>;

  template <class Args>
  void run(void (*kernel)(const Args&), const Args& args) {
    kernel(args);
    if (log_) log_->add(args);
    if (tape_) tape_->push_back([kernel, args] { kernel(args); });
  }

  Tape* tape_ = nullptr;  // set while recording
  CallLog* log_ = nullptr;
};

}  // namespace csml
