// Levels: the stages of the encoder on which the loss is taken (docs/method.md, section 4).
#pragma once

#include <string>
#include <vector>

#include "csml/config/config.h"
#include "csml/method/encoder.h"

namespace csml {

/// The levels of the loss: stages (Encoder::kTop first where it is one) with their weights.
struct Level {
  std::string name{};  // res2 … res5
  int stage = Encoder::kTop;
  float weight = 1;
  int64_t side = 0, window = 0;  // of the stage's map of a full view, and of its patches; window 0: global
  int stride = 1;                // of the search for the best window
};
std::vector<Level> levels_of(const Config& config);
/// What the trained encoder has beside trunk and head.
EncoderParts encoder_parts(const Config& config);
/// The same for given levels: a head at each lower level, predictors where they are asked for.
EncoderParts encoder_parts(const std::vector<Level>& levels, bool predictors);

}  // namespace csml
