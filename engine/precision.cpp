#include "engine/precision.h"

namespace csml {

DType compute_type(const std::string& precision, const Device& device) {
  if (precision == "fp32") return DType::f32;
  if (precision != "bf16" && precision != "fp16")
    throw UsageError(cat("precision '{}' is unknown; use fp32, bf16 or fp16", precision));
  if (std::string(device.name()) == "cpu")
    throw UsageError(
        cat("precision {} needs a GPU (--device cuda): on the CPU 16 bits are slower than fp32, or missing; use "
            "--precision fp32",
            precision));
  return precision == "bf16" ? DType::bf16 : DType::f16;
}

LossScale::LossScale(Device& device, DType compute, const LossScaleOptions& options) : options_(options) {
  if (compute != DType::f16) return;
  scale_ = Tensor::from(device, {2}, std::vector<float>{options.initial, 1 / options.initial});
  counters_ = Tensor::from(device, {2}, std::vector<int64_t>{0, 0});
}

void LossScale::update(const Tensor& finite) const {
  if (!scale_) return;
  backend(scale_).update_loss_scale({.scale = scale_,
                                     .counters = counters_,
                                     .finite = finite,
                                     .interval = options_.interval,
                                     .smallest = options_.smallest,
                                     .largest = options_.largest});
}

void LossScale::begin_read() {
  if (!scale_) return;
  scale_read_.start(scale_);
  counters_read_.start(counters_);
}

LossScale::Reading LossScale::end_read() const {
  if (!scale_) return {};
  return {.scale = scale_read_.values<float>()[0], .skipped = counters_read_.values<int64_t>()[1]};
}

std::vector<std::pair<std::string, Tensor>> LossScale::state() const {
  if (!scale_) return {};
  return {{"loss_scale", scale_}, {"loss_scale.counters", counters_}};
}

}  // namespace csml
