// The GPU's convolutions: cuDNN plans, chosen once per shape; 1x1 weight gradients are matrix products.
#pragma once

#include <memory>
#include <string>
#include <unordered_map>

#include "kernels/cuda/context.h"
#include "kernels/cuda/conv_plan.h"
#include "kernels/cuda/matmul.h"

namespace csml::cuda {

/// x, w and y of a call have one type: f32, bf16 or f16; sums are f32. A weight gradient may also be f32 where x and dy
/// are 16-bit: no cuDNN engine writes that, so it leaves cuDNN in 16 bits and is converted (or added) by axpy; 1x1
/// filters go through cuBLASLt, which writes f32.
///
/// A shape's plan is chosen at its first call, which must not be inside a recording: the fastest of the first
/// candidates, by measurement, or under deterministic rules the first candidate (the same on every run).
class Convolutions {
 public:
  Convolutions(Context& context, Matmuls& matmuls, PlanRules rules);

  void forward(const Backend::Conv2d&);
  void grad_input(const Backend::Conv2dGradInput&);
  void grad_weight(const Backend::Conv2dGradWeight&);

 private:
  struct Hash {
    size_t operator()(const ConvShape& shape) const;
  };

  /// The output, and what becomes of it when the plan could not write it in place.
  struct Output {
    View view;
    Write write = Write::overwrite;
  };
  /// inputs: in the order x, w, y without the output's place.
  void run(const ConvShape& shape, const ConstView& first, const ConstView& second, const Output& output);
  const ConvPlan& plan(const ConvShape& shape, size_t staged_bytes, const std::function<void(const ConvPlan&)>& run);
  ConvPlan choose(const ConvShape& shape, size_t staged_bytes, const std::function<void(const ConvPlan&)>& run);

  Context& context_;
  Matmuls& matmuls_;
  PlanRules rules_;
  std::shared_ptr<void> handle_;  // cudnnHandle_t
  Card card_;
  std::unordered_map<ConvShape, ConvPlan, Hash> plans_;
};

}  // namespace csml::cuda
