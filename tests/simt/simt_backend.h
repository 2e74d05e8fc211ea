// SimtBackend: the CUDA backend's own kernels run by the executor on the host. Memory is host memory; convolution and
// matrix product, which are vendor libraries' on a GPU, are the CPU backend's.
#pragma once

#include <vector>

#include "kernels/cuda/kernels.h"
#include "tests/simt/library_calls.h"

namespace csml::test {

class SimtBackend : public Backend {
 public:
  SimtBackend();
  const char* name() const override { return "simt"; }

  void* allocate(size_t bytes) override;
  void release(void* data) override;
  void upload(void* device, const void* host, size_t bytes) override;
  void download(void* host, const void* device, size_t bytes) override;
  void synchronize() override { context_.check_failure(); }
  void* stream() const override { return nullptr; }
  std::unique_ptr<Replay> record(const std::function<void()>& work) override;

  void fill(const Fill& a) override { run(cuda::fill, a); }
  void copy(const Copy& a) override { run(cuda::copy, a); }
  void axpy(const Axpy& a) override { run(cuda::axpy, a); }
  void relu(const Relu& a) override { run(cuda::relu, a); }
  void relu_grad(const ReluGrad& a) override { run(cuda::relu_grad, a); }
  void column_sum(const ColumnSum& a) override { run(cuda::column_sum, a); }
  void gather(const Gather& a) override { run(cuda::gather, a); }
  void conv2d(const Conv2d& a) override { run(library::conv2d, a); }
  void conv2d_grad_input(const Conv2dGradInput& a) override { run(library::conv2d_grad_input, a); }
  void conv2d_grad_weight(const Conv2dGradWeight& a) override { run(library::conv2d_grad_weight, a); }
  void matmul(const Matmul& a) override { run(library::matmul, a); }
  void max_pool(const MaxPool& a) override { run(cuda::max_pool, a); }
  void max_pool_grad(const MaxPoolGrad& a) override { run(cuda::max_pool_grad, a); }
  void global_avg_pool(const GlobalAvgPool& a) override { run(cuda::global_avg_pool, a); }
  void global_avg_pool_grad(const GlobalAvgPoolGrad& a) override { run(cuda::global_avg_pool_grad, a); }
  void batch_norm(const BatchNorm& a) override { run(cuda::batch_norm, a); }
  void batch_norm_grad(const BatchNormGrad& a) override { run(cuda::batch_norm_grad, a); }
  void batch_norm_inference(const BatchNormInference& a) override { run(cuda::batch_norm_inference, a); }
  void batch_norm_moments(const BatchNormMoments& a) override { run(cuda::batch_norm_moments, a); }
  void batch_norm_merge(const BatchNormMerge& a) override { run(cuda::batch_norm_merge, a); }
  void batch_norm_apply(const BatchNormApply& a) override { run(cuda::batch_norm_apply, a); }
  void batch_norm_grad_sums(const BatchNormGradSums& a) override { run(cuda::batch_norm_grad_sums, a); }
  void batch_norm_grad_apply(const BatchNormGradApply& a) override { run(cuda::batch_norm_grad_apply, a); }
  void l2_normalize(const L2Normalize& a) override { run(cuda::l2_normalize, a); }
  void l2_normalize_grad(const L2NormalizeGrad& a) override { run(cuda::l2_normalize_grad, a); }
  void all_finite(const AllFinite& a) override { run(cuda::all_finite, a); }
  void sgd(const Sgd& a) override { run(cuda::sgd, a); }
  void lars(const Lars& a) override { run(cuda::lars, a); }
  void adamw(const AdamW& a) override { run(cuda::adamw, a); }
  void ema(const Ema& a) override { run(cuda::ema, a); }
  void update_loss_scale(const UpdateLossScale& a) override { run(cuda::update_loss_scale, a); }
  void ring_write(const RingWrite& a) override { run(cuda::ring_write, a); }
  void info_nce(const InfoNce& a) override { run(cuda::info_nce, a); }
  void cross_entropy(const CrossEntropy& a) override { run(cuda::cross_entropy, a); }
  void top_k(const TopK& a) override { run(cuda::top_k, a); }
  void augment(const Augment& a) override { run(cuda::augment, a); }
  void cut_mix(const CutMix& a) override { run(cuda::cut_mix, a); }
  void row_dot(const RowDot& a) override { run(cuda::row_dot, a); }
  void scale_rows(const ScaleRows& a) override { run(cuda::scale_rows, a); }
  void multi_positive(const MultiPositive& a) override { run(cuda::multi_positive, a); }
  void gather_window(const GatherWindow& a) override { run(cuda::gather_window, a); }
  void gather_window_grad(const GatherWindowGrad& a) override { run(cuda::gather_window_grad, a); }
  void best_window(const BestWindow& a) override { run(cuda::best_window, a); }

 private:
  using Tape = std::vector<std::function<void()>>;

  template <class Args>
  void run(void (*kernel)(cuda::Context&, const Args&), const Args& args) {
    kernel(context_, args);
    if (tape_) tape_->push_back([this, kernel, args] { kernel(context_, args); });
  }
  template <class Args>
  void run(void (*kernel)(const Args&), const Args& args) {
    kernel(args);
    if (tape_) tape_->push_back([kernel, args] { kernel(args); });
  }

  cuda::Failure failure_;

 protected:
  cuda::Context context_;

 private:
  Tape* tape_ = nullptr;  // set while recording
};

}  // namespace csml::test
