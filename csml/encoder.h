// Encoder: ResNet trunk, global average pool and projection head over one Params.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "csml/config.h"
#include "engine/safetensors.h"
#include "models/projector.h"
#include "models/resnet.h"

namespace csml {

/// The trunk of a configuration. Throws UsageError for an unknown stem.
ResNetOptions resnet_options(const ModelConfig& config, int in_channels);

class Encoder {
 public:
  /// trainable = false: a momentum encoder (no gradients). The same seed gives the same weights.
  Encoder(Device& device, const ModelConfig& config, int in_channels, uint64_t seed, bool trainable);

  Stages trunk(const Var& x, const Forward& forward, std::vector<Var>* pooled_blocks = nullptr) const {
    return trunk_(x, forward, pooled_blocks);
  }
  std::vector<std::string> block_names() const { return trunk_.block_names(); }
  /// l2_normalize(head(GAP(trunk(x)))), [N, dim]
  Var embed(const Var& x, const Forward& forward) const;
  /// l2_normalize of the projection of pooled features, [N, dim]
  Var project(const Var& pooled) const { return l2_normalize(head_(pooled)); }
  int64_t feature_dim() const { return trunk_.feature_dim(); }
  int64_t project_dim() const { return project_dim_; }

  Params& params() { return *params_; }
  const Params& params() const { return *params_; }

 private:
  std::unique_ptr<Params> params_;
  ResNet trunk_;
  Projector head_;
  int64_t project_dim_;
};

}  // namespace csml
