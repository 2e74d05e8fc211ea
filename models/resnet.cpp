#include "models/resnet.h"

namespace csml {

namespace {

struct Plan {
  bool bottleneck;
  std::array<int, 4> blocks;
};

Plan plan_of(int depth) {
  switch (depth) {
    case 18:
      return {false, {2, 2, 2, 2}};
    case 34:
      return {false, {3, 4, 6, 3}};
    case 50:
      return {true, {3, 4, 6, 3}};
    case 101:
      return {true, {3, 4, 23, 3}};
  }
  throw UsageError(cat("model.depth = {} is unknown; use 18, 34, 50 or 101", depth));
}

Conv2d stem_conv(Params& params, const ResNetOptions& o, const std::string& prefix) {
  return o.cifar_stem ? Conv2d(params, prefix + "conv1", o.in_channels, o.width, 3, 1, 1)
                      : Conv2d(params, prefix + "conv1", o.in_channels, o.width, 7, 2, 3);
}

}  // namespace

bool has_bottlenecks(int depth) { return plan_of(depth).bottleneck; }

ResNet::ResNet(Params& params, const ResNetOptions& options, const std::string& prefix)
    : options_(options), conv1_(stem_conv(params, options, prefix)), bn1_(params, prefix + "bn1", options.width) {
  const Plan plan = plan_of(options.depth);
  int64_t channels = options.width;
  for (int layer = 0; layer < 4; ++layer) {
    const int64_t planes = int64_t{options.width} << layer;
    for (int b = 0; b < plan.blocks[static_cast<size_t>(layer)]; ++b) {
      const int stride = layer > 0 && b == 0 ? 2 : 1;
      layers_[static_cast<size_t>(layer)].push_back(std::make_unique<ResidualBlock>(
          params, prefix + cat("layer{}.{}", layer + 1, b), plan.bottleneck, channels, planes, stride));
      channels = layers_[static_cast<size_t>(layer)].back()->channels();
    }
    stage_channels_[static_cast<size_t>(layer)] = channels;
  }
}

std::vector<std::string> ResNet::block_names() const {
  std::vector<std::string> names;
  for (size_t layer = 0; layer < 4; ++layer)
    for (size_t b = 0; b < layers_[layer].size(); ++b) names.push_back(cat("layer{}.{}", layer + 1, b));
  return names;
}

Stages ResNet::operator()(const Var& x, const Forward& forward, std::vector<Var>* pooled_blocks) const {
  Stages out;
  out.stem = bn1_(conv1_(x), forward, true);
  Var y = options_.cifar_stem ? out.stem : max_pool(out.stem, 3, 2, 1);
  for (size_t layer = 0; layer < 4; ++layer) {
    for (const auto& block : layers_[layer]) {
      y = (*block)(y, forward);
      if (pooled_blocks) pooled_blocks->push_back(global_avg_pool(y));
    }
    out.stage[layer] = y;
  }
  out.pooled = global_avg_pool(y);
  return out;
}

}  // namespace csml
