// SimtBackend: the CUDA backend's own kernels run by the executor on the host. Memory is host memory; convolution and
// matrix product, which are vendor libraries' on a GPU, are the CPU backend's.
#pragma once

#include <vector>

#include "kernels/cpu/kernels.h"
#include "kernels/cuda/kernels.h"

namespace csml::test {

class SimtBackend final : public Backend {
 public:
  SimtBackend();
  const char* name() const override { return "simt"; }

  void* allocate(size_t bytes) override;
  void release(void* data) override;
  void upload(void* device, const void* host, size_t bytes) override;
  void download(void* host, const void* device, size_t bytes) override;
  void synchronize() override { context_.check_failure(); }
  std::unique_ptr<Replay> record(const std::function<void()>& work) override;

  void fill(const Fill& a) override { run(cuda::fill, a); }
  void copy(const Copy& a) override { run(cuda::copy, a); }
  void axpy(const Axpy& a) override { run(cuda::axpy, a); }
  void relu(const Relu& a) override { run(cuda::relu, a); }
  void relu_grad(const ReluGrad& a) override { run(cuda::relu_grad, a); }
  void column_sum(const ColumnSum& a) override { run(cuda::column_sum, a); }
  void gather(const Gather& a) override { run(cuda::gather, a); }
  void conv2d(const Conv2d& a) override { run(cpu::conv2d, a); }
  void conv2d_grad_input(const Conv2dGradInput& a) override { run(cpu::conv2d_grad_input, a); }
  void conv2d_grad_weight(const Conv2dGradWeight& a) override { run(cpu::conv2d_grad_weight, a); }
  void matmul(const Matmul& a) override { run(cpu::matmul, a); }
  // Not written yet; whoever writes one runs it here and removes it from not_on_simt_yet() in tests/backend.cpp.
  void max_pool(const MaxPool&) override { missing("max_pool"); }
  void max_pool_grad(const MaxPoolGrad&) override { missing("max_pool_grad"); }
  void global_avg_pool(const GlobalAvgPool&) override { missing("global_avg_pool"); }
  void global_avg_pool_grad(const GlobalAvgPoolGrad&) override { missing("global_avg_pool_grad"); }
  void batch_norm(const BatchNorm&) override { missing("batch_norm"); }
  void batch_norm_grad(const BatchNormGrad&) override { missing("batch_norm_grad"); }
  void batch_norm_inference(const BatchNormInference&) override { missing("batch_norm_inference"); }
  void l2_normalize(const L2Normalize& a) override { run(cuda::l2_normalize, a); }
  void l2_normalize_grad(const L2NormalizeGrad& a) override { run(cuda::l2_normalize_grad, a); }
  void info_nce(const InfoNce& a) override { run(cuda::info_nce, a); }
  void cross_entropy(const CrossEntropy& a) override { run(cuda::cross_entropy, a); }
  void top_k(const TopK& a) override { run(cuda::top_k, a); }
  void all_finite(const AllFinite&) override { missing("all_finite"); }
  void sgd(const Sgd&) override { missing("sgd"); }
  void lars(const Lars&) override { missing("lars"); }
  void adamw(const AdamW&) override { missing("adamw"); }
  void ema(const Ema&) override { missing("ema"); }
  void ring_write(const RingWrite&) override { missing("ring_write"); }
  void augment(const Augment& a) override { run(cuda::augment, a); }
  void cut_mix(const CutMix& a) override { run(cuda::cut_mix, a); }

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
  [[noreturn]] static void missing(const char* call) {
    throw Error(cat("{}: the CUDA backend's kernel is not written yet", call));
  }

  cuda::Failure failure_;
  cuda::Context context_;
  Tape* tape_ = nullptr;  // set while recording
};

}  // namespace csml::test
