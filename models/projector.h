// Projector: the MLP head of MoCo v2, named fc.0, fc.2 as there.
#pragma once

#include <memory>
#include <string>

#include "engine/layers.h"

namespace csml {

struct ProjectorOptions {
  int64_t in = 2048, hidden = 2048, out = 128;
  bool mlp =
      true;  // Linear(in, hidden) - ReLU - Linear(hidden, out), no batch norm; else Linear(in, out) (MoCo v1), named fc
};

class Projector {
 public:
  Projector(Params& params, const ProjectorOptions& options, const std::string& name = "fc");
  /// [N, in] -> [N, out], not normalised
  Var operator()(const Var& x) const;

 private:
  std::unique_ptr<Linear> first_, last_;  // first_ only in the MLP
};

}  // namespace csml
