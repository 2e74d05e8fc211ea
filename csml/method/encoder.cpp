#include "csml/method/encoder.h"

namespace csml {

ResNetOptions resnet_options(const ModelConfig& config, int in_channels) {
  if (config.stem != "imagenet" && config.stem != "cifar")
    throw UsageError(cat("model.stem = '{}' is unknown; use imagenet or cifar", config.stem));
  return {
      .depth = config.depth, .cifar_stem = config.stem == "cifar", .width = config.width, .in_channels = in_channels};
}

std::unique_ptr<Trunk> make_trunk(Params& params, const ModelConfig& config, int in_channels) {
  if (config.trunk != "resnet") return registered_trunk(config.trunk)(params, in_channels);
  return std::make_unique<ResNet>(params, resnet_options(config, in_channels));
}

namespace {

ProjectorOptions projector_options(const ModelConfig& config, int64_t features) {
  using Norm = ProjectorOptions::Norm;
  return {.in = features,
          .hidden = config.head_hidden > 0 ? config.head_hidden : features,
          .out = config.dim,
          .mlp = config.head_mlp,
          .norm = config.head_bn == "all"      ? Norm::all
                  : config.head_bn == "hidden" ? Norm::hidden
                                               : Norm::none};
}

}  // namespace

int stage_of_level(const std::string& level) {
  for (int stage = 0; stage <= Encoder::kTop; ++stage)
    if (level == cat("res{}", stage + 2)) return stage;
  throw UsageError(cat("level '{}' is unknown; use res2, res3, res4 or res5", level));
}

Encoder::Encoder(Device& device, const ModelConfig& config, int in_channels, uint64_t seed, bool trainable,
                 const EncoderParts& parts, DType compute)
    : params_(std::make_unique<Params>(device)),
      trunk_(make_trunk(*params_, config, in_channels)),
      trunk_part_(0, params_->buffer_entries().size()),
      head_(*params_, projector_options(config, trunk_->feature_dim())),
      project_dim_(config.dim) {
  const auto count = [&] { return params_->buffer_entries().size(); };
  head_part_[kTop] = {trunk_part_.second, count()};
  const ProjectorOptions projector = projector_options(config, trunk_->feature_dim());
  for (const int stage : parts.stages) {
    const size_t s = static_cast<size_t>(stage), before = count();
    if (trunk_->stage_channels(stage) == 0)
      throw UsageError(
          cat("method.levels names res{}, but the network '{}' has no such stage", stage + 2, config.trunk));
    level_heads_.at(s) = std::make_unique<LevelHead>(*params_,
                                                     LevelHeadOptions{.bottleneck = has_bottlenecks(config.depth),
                                                                      .in = trunk_->stage_channels(stage),
                                                                      .planes = int64_t{config.width} << kTop,
                                                                      .blocks = config.level_blocks,
                                                                      .projector = projector},
                                                     cat("heads.res{}", stage + 2));
    head_part_[s] = {before, count()};
  }
  for (int stage = kTop; parts.predictors && stage >= 0; --stage) {
    const size_t s = static_cast<size_t>(stage), before = count();
    if (stage < kTop && !level_heads_[s]) continue;
    predictors_[s] = std::make_unique<Projector>(
        *params_,
        ProjectorOptions{.in = config.dim,
                         .hidden = config.predictor_hidden > 0 ? config.predictor_hidden : projector.hidden,
                         .out = config.dim,
                         .mlp = true,
                         .norm = ProjectorOptions::Norm::hidden},
        cat("predictors.res{}", stage + 2));
    predictor_part_[s] = {before, count()};
  }
  params_->build(seed, trainable, compute);
}

Encoder::Range Encoder::range(const Part& part) const {
  const std::vector<Params::Entry>& entries = params_->buffer_entries();
  const auto offset = [&](size_t i) { return i < entries.size() ? entries[i].offset : params_->buffers().size(); };
  return {offset(part.first), offset(part.second) - offset(part.first)};
}

Var Encoder::head(int stage, const Var& x, const Forward& forward) const {
  if (stage == kTop) return head_(x, forward);
  const auto& head = level_heads_.at(static_cast<size_t>(stage));
  CHECK(head, "this encoder has no head at stage {}", stage);
  return (*head)(x, forward);
}

Var Encoder::predict(int stage, const Var& x, const Forward& forward) const {
  const auto& predictor = predictors_.at(static_cast<size_t>(stage));
  CHECK(predictor, "this encoder has no predictor at stage {}", stage);
  return (*predictor)(x, forward);
}

}  // namespace csml
