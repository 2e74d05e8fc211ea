// MoCo v2 (Chen et al. 2020; He et al. 2020): one positive, the sample's own key, against the queue.
//   L = -log exp(q.k/T) / (exp(q.k/T) + sum_{n in Q} exp(q.n/T))
#pragma once

#include "csml/momentum_contrast.h"

namespace csml {

class MoCo final : public MomentumContrast {
 public:
  MoCo(Device& device, const Config& config, int in_channels, Comm& comm = Comm::alone());
  bool needs_neighbors() const override { return false; }

 private:
  std::vector<Term> terms() override;

  Tensor one_;
};

}  // namespace csml
