// CudaBackend: one NVIDIA card of capability 8.0 or newer. One stream; a recording is a CUDA graph.
//
// Environment: CSML_TF32=1 lets f32 convolutions and matrix products round their factors to TF32; CSML_DETERMINISTIC=1
// takes cuDNN's deterministic engines only and chooses plans without measuring; CSML_SYNC=1 waits after every call, so
// that a failure names the call (with CSML_EAGER=1; a replayed graph is checked as a whole); CSML_CUDA_PLANS=1 tells
// the plan chosen for each convolution on standard error.
#pragma once

#include <memory>
#include <string>
#include <unordered_map>

#include "kernels/cuda/kernels.h"

namespace csml {

class CudaBackend final : public Backend {
 public:
  /// Empty, or why this machine's card `card` cannot be used, and what to do about it.
  static std::string why_not(int card);
  /// Whether a driver is loaded and sees at least one card, whatever its age.
  static bool sees_a_card();

  /// Throws Error with why_not(card), and where cuDNN or cuBLASLt are absent.
  explicit CudaBackend(int card);
  ~CudaBackend() override;

  const char* name() const override { return "cuda"; }

  void* allocate(size_t bytes) override;
  void release(void* data) override;
  Memory memory() const override { return memory_; }
  void upload(void* device, const void* host, size_t bytes) override;
  void download(void* host, const void* device, size_t bytes) override;
  std::unique_ptr<Readback> readback(size_t bytes) override;
  void synchronize() override;
  void* stream() const override;
  /// The calls are captured, not run, while work() runs; then the graph runs once. Not captured: allocations and
  /// uploads (done at once). Refused inside: downloads and synchronize(). Convolutions and scratch memory must have
  /// been seen before: run the work once, then record it.
  std::unique_ptr<Replay> record(const std::function<void()>& work) override;

  void fill(const Fill& a) override { run("fill", cuda::fill, a); }
  void copy(const Copy& a) override { run("copy", cuda::copy, a); }
  void copy_beside(const Copy&) override;
  void join_copies() override;
  void axpy(const Axpy& a) override { run("axpy", cuda::axpy, a); }
  void relu(const Relu& a) override { run("relu", cuda::relu, a); }
  void relu_grad(const ReluGrad& a) override { run("relu_grad", cuda::relu_grad, a); }
  void column_sum(const ColumnSum& a) override { run("column_sum", cuda::column_sum, a); }
  void gather(const Gather& a) override { run("gather", cuda::gather, a); }
  void conv2d(const Conv2d&) override;
  void conv2d_grad_input(const Conv2dGradInput&) override;
  void conv2d_grad_weight(const Conv2dGradWeight&) override;
  void matmul(const Matmul&) override;
  void max_pool(const MaxPool& a) override { run("max_pool", cuda::max_pool, a); }
  void max_pool_grad(const MaxPoolGrad& a) override { run("max_pool_grad", cuda::max_pool_grad, a); }
  void global_avg_pool(const GlobalAvgPool& a) override { run("global_avg_pool", cuda::global_avg_pool, a); }
  void global_avg_pool_grad(const GlobalAvgPoolGrad& a) override {
    run("global_avg_pool_grad", cuda::global_avg_pool_grad, a);
  }
  void batch_norm(const BatchNorm& a) override { run("batch_norm", cuda::batch_norm, a); }
  void batch_norm_grad(const BatchNormGrad& a) override { run("batch_norm_grad", cuda::batch_norm_grad, a); }
  void batch_norm_inference(const BatchNormInference& a) override {
    run("batch_norm_inference", cuda::batch_norm_inference, a);
  }
  void batch_norm_moments(const BatchNormMoments& a) override {
    run("batch_norm_moments", cuda::batch_norm_moments, a);
  }
  void batch_norm_merge(const BatchNormMerge& a) override { run("batch_norm_merge", cuda::batch_norm_merge, a); }
  void batch_norm_apply(const BatchNormApply& a) override { run("batch_norm_apply", cuda::batch_norm_apply, a); }
  void batch_norm_grad_sums(const BatchNormGradSums& a) override {
    run("batch_norm_grad_sums", cuda::batch_norm_grad_sums, a);
  }
  void batch_norm_grad_apply(const BatchNormGradApply& a) override {
    run("batch_norm_grad_apply", cuda::batch_norm_grad_apply, a);
  }
  void l2_normalize(const L2Normalize& a) override { run("l2_normalize", cuda::l2_normalize, a); }
  void l2_normalize_grad(const L2NormalizeGrad& a) override { run("l2_normalize_grad", cuda::l2_normalize_grad, a); }
  void info_nce(const InfoNce& a) override { run("info_nce", cuda::info_nce, a); }
  void cross_entropy(const CrossEntropy& a) override { run("cross_entropy", cuda::cross_entropy, a); }
  void top_k(const TopK& a) override { run("top_k", cuda::top_k, a); }
  void all_finite(const AllFinite& a) override { run("all_finite", cuda::all_finite, a); }
  void sgd(const Sgd& a) override { run("sgd", cuda::sgd, a); }
  void lars(const Lars& a) override { run("lars", cuda::lars, a); }
  void adamw(const AdamW& a) override { run("adamw", cuda::adamw, a); }
  void ema(const Ema& a) override { run("ema", cuda::ema, a); }
  void update_loss_scale(const UpdateLossScale& a) override { run("update_loss_scale", cuda::update_loss_scale, a); }
  void ring_write(const RingWrite& a) override { run("ring_write", cuda::ring_write, a); }
  void augment(const Augment& a) override { run("augment", cuda::augment, a); }
  void cut_mix(const CutMix& a) override { run("cut_mix", cuda::cut_mix, a); }
  void row_dot(const RowDot& a) override { run("row_dot", cuda::row_dot, a); }
  void scale_rows(const ScaleRows& a) override { run("scale_rows", cuda::scale_rows, a); }
  void multi_positive(const MultiPositive& a) override { run("multi_positive", cuda::multi_positive, a); }
  void gather_window(const GatherWindow& a) override { run("gather_window", cuda::gather_window, a); }
  void gather_window_grad(const GatherWindowGrad& a) override {
    run("gather_window_grad", cuda::gather_window_grad, a);
  }
  void best_window(const BestWindow& a) override { run("best_window", cuda::best_window, a); }

 private:
  struct State;  // stream, context, libraries: all that needs CUDA's headers

  template <class Args>
  void run(const char* call, void (*kernel)(cuda::Context&, const Args&), const Args& args) {
    kernel(context(), args);
    finish(call);
  }
  cuda::Context& context();
  /// Under CSML_SYNC=1: waits, and throws what went wrong in `call`.
  void finish(const char* call);

  std::unordered_map<void*, size_t> blocks_;  // of allocate(), with their bytes
  Memory memory_;
  std::unique_ptr<State> state_;  // its end releases blocks
};

}  // namespace csml
