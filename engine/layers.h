// Layers: parameters plus the op that uses them. A layer registers with a Params at construction and is called with the
// way the network is run.
#pragma once

#include <string>

#include "engine/ops.h"
#include "engine/params.h"
#include "engine/sync_batch_norm.h"

namespace csml {

/// How a network is run once.
struct Forward {
  bool training = true;  // normalise with the batch's statistics; else with the running ones
  int groups = 1;        // batch-norm groups: contiguous equal parts of the batch with statistics of their own
  RankSpan span{};       // processes that share the one group; of one process: none
  Tensor statistics;     // flat like Params::buffers(): receives this batch's statistics (state changes in commit only)

  static Forward inference() { return {.training = false, .groups = 1, .span = {}, .statistics = {}}; }
};

/// Convolution without bias; weight [K,R,S,C], normal with std sqrt(2 / (K*R*S)) (He et al. 2015, fan-out).
class Conv2d {
 public:
  Conv2d(Params& params, const std::string& name, int64_t in, int64_t out, int kernel, int stride, int pad);
  Var operator()(const Var& x) const { return conv2d(x, params_->parameter(weight_), stride_, pad_); }

 private:
  const Params* params_;
  int weight_, stride_, pad_;
};

/// Batch norm, fused with a residual add and ReLU where asked; gamma 1, beta 0, running statistics as torchvision's.
class BatchNorm {
 public:
  /// affine = false: gamma 1 and beta 0 are fixed.
  BatchNorm(Params& params, const std::string& name, int64_t channels, bool affine = true);
  /// act(bn(x) + residual); residual may be empty.
  Var operator()(const Var& x, const Forward& forward, bool relu, const Var& residual = {}) const;

 private:
  const Params* params_;
  int gamma_ = -1, beta_ = -1, mean_, var_;
  Var fixed_gamma_, fixed_beta_;  // where not affine
};

/// x w^T + b; weight [out,in] and bias uniform in +-1/sqrt(in) (PyTorch's default).
class Linear {
 public:
  Linear(Params& params, const std::string& name, int64_t in, int64_t out, bool bias = true);
  Var operator()(const Var& x) const {
    return linear(x, params_->parameter(weight_), bias_ < 0 ? Var() : params_->parameter(bias_));
  }

 private:
  const Params* params_;
  int weight_, bias_ = -1;
};

}  // namespace csml
