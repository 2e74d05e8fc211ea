// Encoder: trunk (a ResNet or a network of one's own), global average pool and projection head over one Params; for methods that ask, heads at lower
// stages and predictors.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "csml/config/config.h"
#include "engine/safetensors.h"
#include "models/level_head.h"
#include "models/projector.h"
#include "models/resnet.h"

namespace csml {

/// The ResNet of a configuration. Throws UsageError for an unknown stem.
ResNetOptions resnet_options(const ModelConfig& config, int in_channels);
/// The trunk of a configuration: that ResNet, or the registered network that model.trunk names. Throws UsageError.
std::unique_ptr<Trunk> make_trunk(Params& params, const ModelConfig& config, int in_channels);

/// The stage of a level's name: "res2" 0 … "res5" 3. Throws UsageError.
int stage_of_level(const std::string& level);

/// What an encoder has beside trunk and head.
struct EncoderParts {
  std::vector<int> stages;  // lower stages (0 … 2) with a head of their own
  bool predictors = false;  // behind every head
};

class Encoder {
 public:
  static constexpr int kTop = 3;  // the last stage, res5, whose head is the projection head

  /// trainable = false: a momentum encoder (no gradients). The same seed gives the same weights, and the parameters of
  /// an encoder without predictors are the first of one with them. compute: f32, or bf16 or f16 on a GPU.
  Encoder(Device& device, const ModelConfig& config, int in_channels, uint64_t seed, bool trainable,
          const EncoderParts& parts = {}, DType compute = DType::f32);

  /// Maps and pooled features in the type that the encoder computes in, whatever x is.
  Stages trunk(const Var& x, const Forward& forward, std::vector<Var>* pooled_blocks = nullptr) const {
    return (*trunk_)(cast(x, params_->compute_type()), forward, pooled_blocks);
  }
  std::vector<std::string> block_names() const { return trunk_->block_names(); }
  /// l2_normalize(head(GAP(trunk(x)))), [N, dim], f32
  Var embed(const Var& x, const Forward& forward) const { return project(trunk(x, forward).pooled, forward); }
  /// l2_normalize of the projection of pooled features, [N, dim], f32
  Var project(const Var& pooled, const Forward& forward = Forward::inference()) const {
    return l2_normalize(head_(pooled, forward));
  }
  /// The head of a stage on its map (kTop: on the pooled features), not normalised.
  Var head(int stage, const Var& x, const Forward& forward) const;
  /// The predictor behind that head, not normalised.
  Var predict(int stage, const Var& x, const Forward& forward) const;
  int64_t feature_dim() const { return trunk_->feature_dim(); }
  int64_t project_dim() const { return project_dim_; }

  /// A part's running statistics in Params::buffers(): first element and count.
  struct Range {
    int64_t first = 0, count = 0;
  };
  Range trunk_statistics() const { return range(trunk_part_); }
  Range head_statistics(int stage) const { return range(head_part_[static_cast<size_t>(stage)]); }
  Range predictor_statistics(int stage) const { return range(predictor_part_[static_cast<size_t>(stage)]); }

  Params& params() { return *params_; }
  const Params& params() const { return *params_; }

 private:
  using Part = std::pair<size_t, size_t>;  // numbers of buffer entries
  Range range(const Part& part) const;

  std::unique_ptr<Params> params_;
  std::unique_ptr<Trunk> trunk_;
  Part trunk_part_;
  Projector head_;
  std::array<std::unique_ptr<LevelHead>, 3> level_heads_;
  std::array<std::unique_ptr<Projector>, 4> predictors_;
  std::array<Part, 4> head_part_{}, predictor_part_{};
  int64_t project_dim_;
};

}  // namespace csml
