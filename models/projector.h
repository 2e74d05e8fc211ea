// Projector: the MLP heads of contrastive methods: projections and predictors, numbered as PyTorch's Sequential does.
#pragma once

#include <memory>
#include <string>

#include "engine/layers.h"

namespace csml {

struct ProjectorOptions {
  /// Where batch norm stands: nowhere (MoCo v2), after the hidden layer (BYOL, predictors), or after the last one too
  /// (SimCLR, MoCo v3), there without gamma and beta.
  enum class Norm { none, hidden, all };

  int64_t in = 2048, hidden = 2048, out = 128;
  bool mlp = true;  // Linear(in, hidden) [- BN] - ReLU - Linear(hidden, out) [- BN]; else Linear(in, out) (MoCo v1)
  Norm norm = Norm::none;  // a linear layer has no bias where batch norm follows
};

class Projector {
 public:
  Projector(Params& params, const ProjectorOptions& options, const std::string& name = "fc");
  /// [N, in] -> [N, out], not normalised to unit length
  Var operator()(const Var& x, const Forward& forward) const;

 private:
  std::unique_ptr<Linear> first_, last_;  // first_ only in the MLP
  std::unique_ptr<BatchNorm> first_norm_, last_norm_;
};

}  // namespace csml
