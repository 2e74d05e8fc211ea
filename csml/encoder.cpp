#include "csml/encoder.h"

namespace csml {

ResNetOptions resnet_options(const ModelConfig& config, int in_channels) {
  if (config.stem != "imagenet" && config.stem != "cifar")
    throw UsageError(cat("model.stem = '{}' is unknown; use imagenet or cifar", config.stem));
  return {
      .depth = config.depth, .cifar_stem = config.stem == "cifar", .width = config.width, .in_channels = in_channels};
}

namespace {

ProjectorOptions projector_options(const ModelConfig& config, int64_t features) {
  return {.in = features,
          .hidden = config.head_hidden > 0 ? config.head_hidden : features,
          .out = config.dim,
          .mlp = config.head_mlp};
}

}  // namespace

Encoder::Encoder(Device& device, const ModelConfig& config, int in_channels, uint64_t seed, bool trainable)
    : params_(std::make_unique<Params>(device)),
      trunk_(*params_, resnet_options(config, in_channels)),
      head_(*params_, projector_options(config, trunk_.feature_dim())),
      project_dim_(config.dim) {
  params_->build(seed, trainable);
}

Var Encoder::embed(const Var& x, const Forward& forward) const { return project(trunk_(x, forward).pooled); }

}  // namespace csml
