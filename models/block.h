// ResidualBlock: the basic block and the bottleneck of He et al. 2016, with torchvision's parameter names.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/layers.h"

namespace csml {

/// relu(branch(x) + shortcut(x)); the branch is two 3x3 convolutions, or 1x1, 3x3 (with the stride, "v1.5"), 1x1. The
/// shortcut is a 1x1 convolution with batch norm where the stride or the channels change.
class ResidualBlock {
 public:
  /// in channels to `planes` (basic block) or 4 * planes (bottleneck).
  ResidualBlock(Params& params, const std::string& name, bool bottleneck, int64_t in, int64_t planes, int stride);
  Var operator()(const Var& x, const Forward& forward) const;
  /// Channels of the output.
  int64_t channels() const { return channels_; }

 private:
  int64_t channels_;
  std::vector<Conv2d> convs_;
  std::vector<BatchNorm> norms_;
  std::unique_ptr<Conv2d> shortcut_conv_;
  std::unique_ptr<BatchNorm> shortcut_norm_;
};

}  // namespace csml
