// Trunk: the network that an encoder is built on, images to features. ResNet is one; a program may bring its own.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/layers.h"

namespace csml {

/// What a forward pass leaves at each stage. A trunk of one's own may fill `pooled` alone.
struct Stages {
  Var stem;                  // after the stem's ReLU, before its max pool
  std::array<Var, 4> stage;  // outputs of layer1 … layer4 (res2 … res5), [N,H,W,C]
  Var pooled;                // global average of layer4, [N, feature_dim]
};

/// Its layers register their parameters and running statistics with a Params while it is constructed.
class Trunk {
 public:
  Trunk() = default;
  virtual ~Trunk() = default;
  Trunk(const Trunk&) = delete;
  Trunk& operator=(const Trunk&) = delete;

  /// x [N,H,W,C], normalised, in the type that the Params computes in. Batch norms are called with `forward`.
  /// pooled_blocks, where given, receives the features [N,·] of every block that block_names() names, in that order.
  virtual Stages operator()(const Var& x, const Forward& forward, std::vector<Var>* pooled_blocks = nullptr) const = 0;
  /// Blocks with features of their own, in order; csml linear --augment puts classifiers on the last ones.
  virtual std::vector<std::string> block_names() const { return {}; }
  /// Columns of Stages::pooled.
  virtual int64_t feature_dim() const = 0;
  /// Channels of Stages::stage[stage]; 0 where the trunk leaves that one empty (method.levels cannot name it then).
  virtual int64_t stage_channels(int stage) const { return static_cast<void>(stage), 0; }
};

/// Builds a trunk for images of so many channels; called for every encoder of a run, and for those read from
/// checkpoints.
using MakeTrunk = std::function<std::unique_ptr<Trunk>(Params& params, int in_channels)>;

/// Makes a network known in this process under the name that model.trunk of a configuration, and so of a checkpoint,
/// gives. To be called before the first encoder is made, from one thread. Throws UsageError for the name "resnet".
void register_trunk(const std::string& name, MakeTrunk make);
/// Throws UsageError, with the names that are known, for a name that nobody registered.
const MakeTrunk& registered_trunk(const std::string& name);

}  // namespace csml
