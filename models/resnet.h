// ResNet-18/34/50/101 (He et al. 2016; bottleneck stride on the 3x3, "v1.5") with torchvision's parameter names.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "models/block.h"
#include "models/trunk.h"

namespace csml {

struct ResNetOptions {
  int depth = 50;           // 18, 34: basic blocks; 50, 101: bottlenecks
  bool cifar_stem = false;  // 3x3 stride 1 and no max pool (32 px) instead of 7x7 stride 2 and max pool (224 px)
  int width = 64;           // channels of the first stage; 64 is the published network
  int in_channels = 3;
};

/// Bottlenecks, or basic blocks. Throws UsageError for an unknown depth.
bool has_bottlenecks(int depth);

/// Throws UsageError for an unknown depth. The network's parameters live in `params`, under prefix + torchvision's
/// names.
class ResNet : public Trunk {
 public:
  ResNet(Params& params, const ResNetOptions& options, const std::string& prefix = "");

  /// x [N,H,W,in_channels]. pooled_blocks receives the global average of every residual block's output, in order.
  Stages operator()(const Var& x, const Forward& forward, std::vector<Var>* pooled_blocks = nullptr) const override;
  /// "layer1.0", …: the residual blocks in order.
  std::vector<std::string> block_names() const override;
  /// Channels of layer4.
  int64_t feature_dim() const override { return stage_channels_[3]; }
  int64_t stage_channels(int stage) const override { return stage_channels_[static_cast<size_t>(stage)]; }

 private:
  ResNetOptions options_;
  Conv2d conv1_;
  BatchNorm bn1_;
  std::array<std::vector<std::unique_ptr<ResidualBlock>>, 4> layers_;
  std::array<int64_t, 4> stage_channels_{};
};

}  // namespace csml
