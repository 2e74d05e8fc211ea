#include "engine/layers.h"

#include <cmath>

namespace csml {

Conv2d::Conv2d(Params& params, const std::string& name, int64_t in, int64_t out, int kernel, int stride, int pad)
    : params_(&params), stride_(stride), pad_(pad) {
  const float fan_out = static_cast<float>(out * kernel * kernel);
  weight_ = params.add(name + ".weight", {out, kernel, kernel, in}, Init::normal(std::sqrt(2.f / fan_out)));
}

BatchNorm::BatchNorm(Params& params, const std::string& name, int64_t channels, bool affine) : params_(&params) {
  if (affine) {
    gamma_ = params.add(name + ".weight", {channels}, Init::constant(1.f));
    beta_ = params.add(name + ".bias", {channels}, Init::constant(0.f));
  } else {
    fixed_gamma_ = Var(Tensor::full(params.device(), {channels}, 1.f));
    fixed_beta_ = Var(Tensor::full(params.device(), {channels}, 0.f));
  }
  mean_ = params.add_buffer(name + ".running_mean", {channels}, 0.f);
  var_ = params.add_buffer(name + ".running_var", {channels}, 1.f);
}

Var BatchNorm::operator()(const Var& x, const Forward& forward, bool relu, const Var& residual) const {
  const Var& gamma = gamma_ < 0 ? fixed_gamma_ : params_->parameter(gamma_);
  const Var& beta = beta_ < 0 ? fixed_beta_ : params_->parameter(beta_);
  if (!forward.training)
    return batch_norm_inference(x, gamma, beta, params_->buffer(mean_), params_->buffer(var_), residual, relu);
  BatchNormOptions options{.groups = forward.groups, .relu = relu, .batch_mean = {}, .batch_var = {}};
  if (forward.statistics) {
    options.batch_mean = params_->slice(forward.statistics, mean_);
    options.batch_var = params_->slice(forward.statistics, var_);
  }
  if (forward.span.count > 1) return sync_batch_norm(x, gamma, beta, residual, options, forward.span);
  return batch_norm(x, gamma, beta, residual, options);
}

Linear::Linear(Params& params, const std::string& name, int64_t in, int64_t out, bool bias) : params_(&params) {
  const float bound = 1.f / std::sqrt(static_cast<float>(in));
  weight_ = params.add(name + ".weight", {out, in}, Init::uniform(bound));
  if (bias) bias_ = params.add(name + ".bias", {out}, Init::uniform(bound));
}

}  // namespace csml
