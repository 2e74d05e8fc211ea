#include "models/projector.h"

namespace csml {

Projector::Projector(Params& params, const ProjectorOptions& o, const std::string& name) {
  const bool hidden_norm = o.norm != ProjectorOptions::Norm::none, last_norm = o.norm == ProjectorOptions::Norm::all;
  if (!o.mlp) {
    last_ = std::make_unique<Linear>(params, name, o.in, o.out);
    return;
  }
  int number = 0;
  const auto next = [&] { return cat("{}.{}", name, number++); };
  first_ = std::make_unique<Linear>(params, next(), o.in, o.hidden, !hidden_norm);
  if (hidden_norm) first_norm_ = std::make_unique<BatchNorm>(params, next(), o.hidden);
  ++number;  // ReLU
  last_ = std::make_unique<Linear>(params, next(), o.hidden, o.out, !last_norm);
  if (last_norm) last_norm_ = std::make_unique<BatchNorm>(params, next(), o.out, false);
}

Var Projector::operator()(const Var& x, const Forward& forward) const {
  Var y = x;
  if (first_) {
    y = (*first_)(y);
    y = first_norm_ ? (*first_norm_)(y, forward, true) : relu(y);
  }
  y = (*last_)(y);
  return last_norm_ ? (*last_norm_)(y, forward, false) : y;
}

}  // namespace csml
