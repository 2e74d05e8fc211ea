// LevelHead: what turns a lower stage's map into an embedding of its own (multi-level views, docs/method.md, section
// 3).
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "models/block.h"
#include "models/projector.h"

namespace csml {

struct LevelHeadOptions {
  bool bottleneck = true;      // kind of its blocks, as in the trunk
  int64_t in = 1024;           // channels of the stage's map
  int64_t planes = 512;        // of its blocks: those of the last stage
  int blocks = 2;              // the first with stride 2
  ProjectorOptions projector;  // `in` is taken from the blocks
};

/// Blocks - global average pool - Projector. Parameters: NAME.stage.0 …, NAME.fc …
class LevelHead {
 public:
  LevelHead(Params& params, const LevelHeadOptions& options, const std::string& name);
  /// Map [N,H,W,in] of any size -> [N, projector.out], not normalised to unit length.
  Var operator()(const Var& x, const Forward& forward) const;

 private:
  std::vector<std::unique_ptr<ResidualBlock>> blocks_;
  std::unique_ptr<Projector> projector_;
};

}  // namespace csml
