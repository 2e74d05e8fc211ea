#include "models/level_head.h"

namespace csml {

LevelHead::LevelHead(Params& params, const LevelHeadOptions& o, const std::string& name) {
  int64_t channels = o.in;
  for (int b = 0; b < o.blocks; ++b) {
    blocks_.push_back(std::make_unique<ResidualBlock>(params, cat("{}.stage.{}", name, b), o.bottleneck, channels,
                                                      o.planes, b == 0 ? 2 : 1));
    channels = blocks_.back()->channels();
  }
  ProjectorOptions projector = o.projector;
  projector.in = channels;
  projector_ = std::make_unique<Projector>(params, projector, name + ".fc");
}

Var LevelHead::operator()(const Var& x, const Forward& forward) const {
  Var y = x;
  for (const auto& block : blocks_) y = (*block)(y, forward);
  return (*projector_)(global_avg_pool(y), forward);
}

}  // namespace csml
