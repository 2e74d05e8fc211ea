#include "engine/update.h"

namespace csml {

Update::Update(const Params& params, const OptimizerOptions& options, float statistics_momentum)
    : params_(params),
      optimizer_(Optimizer::make(params, options)),
      rate_(Tensor::full(params.device(), {1}, 0)),
      statistics_momentum_(Tensor::full(params.device(), {1}, statistics_momentum)),
      finite_(params.device(), {1}, DType::i32) {
  finite_.upload(std::vector<int32_t>{1});
  if (params.buffers().size() > 0) statistics_ = Tensor::full(params.device(), params.buffers().shape(), 0);
}

void Update::set_learning_rate(double rate) { rate_.upload(std::vector<float>{static_cast<float>(rate)}); }

void Update::operator()(const Var& loss) {
  params_.begin_gradients();
  loss.backward();
  params_.finish_gradients();
  all_finite(params_.grad(), finite_);
  optimizer_->step({.learning_rate = rate_, .finite = finite_});
  if (statistics_) ema(statistics_, params_.buffers(), statistics_momentum_, finite_);
}

}  // namespace csml
