#include "models/block.h"

namespace csml {

ResidualBlock::ResidualBlock(Params& params, const std::string& name, bool bottleneck, int64_t in, int64_t planes,
                             int stride)
    : channels_(bottleneck ? 4 * planes : planes) {
  int64_t channels = in;
  auto unit = [&](int number, int64_t to, int kernel, int unit_stride) {
    convs_.emplace_back(params, name + cat(".conv{}", number), channels, to, kernel, unit_stride, kernel / 2);
    norms_.emplace_back(params, name + cat(".bn{}", number), to);
    channels = to;
  };
  if (bottleneck) {
    unit(1, planes, 1, 1);
    unit(2, planes, 3, stride);
    unit(3, channels_, 1, 1);
  } else {
    unit(1, planes, 3, stride);
    unit(2, channels_, 3, 1);
  }
  if (stride != 1 || in != channels_) {
    shortcut_conv_ = std::make_unique<Conv2d>(params, name + ".downsample.0", in, channels_, 1, stride, 0);
    shortcut_norm_ = std::make_unique<BatchNorm>(params, name + ".downsample.1", channels_);
  }
}

Var ResidualBlock::operator()(const Var& x, const Forward& forward) const {
  Var y = x;
  for (size_t i = 0; i + 1 < convs_.size(); ++i) y = norms_[i](convs_[i](y), forward, true);
  y = convs_.back()(y);
  const Var shortcut = shortcut_conv_ ? (*shortcut_norm_)((*shortcut_conv_)(x), forward, false) : x;
  return norms_.back()(y, forward, true, shortcut);
}

}  // namespace csml
