// Precision: the element type a network computes in, and the scaling of its loss that fp16 needs.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "engine/host_copy.h"

namespace csml {

/// Of "fp32", "bf16" or "fp16". Throws UsageError for another name, and for 16 bits on the CPU: bf16 is slower than f32
/// there, and there are no fp16 convolutions.
DType compute_type(const std::string& precision, const Device& device);

/// All powers of two, so that scaling a gradient and back rounds nothing. 65536 and 2000: torch.cuda.amp.GradScaler and
/// NVIDIA Apex; 1: Megatron-LM's least scale; 2^24: Apex's largest.
struct LossScaleOptions {
  float initial = 65536;
  int interval = 2000;  // finite steps after which it doubles
  float smallest = 1, largest = 16777216;
};

/// The factor of the loss that keeps fp16 gradients above that type's smallest numbers, found by trial while training
/// goes on: halved by a step whose gradients overflow (which changes nothing else), doubled after `interval` finite
/// ones (Micikevicius et al. 2018, section 3.2). It lives on the device; a step reads and changes it there.
class LossScale {
 public:
  /// In f32 and bf16, whose range needs no scaling, nothing is scaled: all tensors are empty.
  LossScale(Device& device, DType compute, const LossScaleOptions& options);

  explicit operator bool() const { return static_cast<bool>(scale_); }
  /// What backward starts from, f32 [1].
  Tensor seed() const { return scale_ ? scale_.span(0, {1}) : Tensor(); }
  /// What the optimizer multiplies gradients by, f32 [1].
  Tensor inverse() const { return scale_ ? scale_.span(1, {1}) : Tensor(); }
  /// Part of the commit, after everything that reads `finite` or the scale. An overflow that lowers the scale is no
  /// alarm: `finite` is 1 again.
  void update(const Tensor& finite) const;

  struct Reading {
    double scale = 1;
    int64_t skipped = 0;  // steps that halved it, since the start of training
  };
  /// Starts a copy for the host, which waits for nothing; and its values.
  void begin_read();
  Reading end_read() const;
  Reading read() {
    begin_read();
    return end_read();
  }
  /// To be saved and restored, by name; empty where nothing is scaled.
  std::vector<std::pair<std::string, Tensor>> state() const;

 private:
  LossScaleOptions options_;
  Tensor scale_, counters_;  // Backend::UpdateLossScale
  HostCopy scale_read_, counters_read_;
};

}  // namespace csml
