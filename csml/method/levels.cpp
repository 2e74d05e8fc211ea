#include "csml/method/levels.h"

#include <algorithm>
#include <cmath>

#include "csml/method/base.h"

namespace csml {

std::vector<Level> levels_of(const Config& config) {
  const MethodConfig& m = config.method;
  std::vector<Level> levels;
  for (size_t i = 0; i < m.levels.size(); ++i) {
    Level level{.name = m.levels[i], .stage = stage_of_level(m.levels[i])};
    if (!m.level_weights.empty()) level.weight = static_cast<float>(m.level_weights.at(i));
    int halvings = level.stage + (config.model.stem == "cifar" ? 0 : 2);
    level.side = config.augment.crop_size;
    while (halvings-- > 0) level.side = (level.side + 1) / 2;
    if (m.alignment != "global" && level.stage != Encoder::kTop) {
      // 8 of 14, searched every 3, as the authors' branch has it for res4 at 224 pixels
      const auto share = [&](double of_14) {
        return std::max<int64_t>(1, std::lround(of_14 / 14 * static_cast<double>(level.side)));
      };
      level.window = m.patch_window > 0 ? m.patch_window : share(8);
      level.stride = m.patch_stride > 0 ? m.patch_stride : static_cast<int>(share(3));
      if (level.window > level.side)
        throw UsageError(cat("method.patch_window = {} is larger than the map of {} ({} x {})", level.window,
                             level.name, level.side, level.side));
    }
    levels.push_back(level);
  }
  std::stable_sort(levels.begin(), levels.end(), [](const Level& a, const Level& b) { return a.stage > b.stage; });
  return levels;
}

EncoderParts encoder_parts(const std::vector<Level>& levels, bool predictors) {
  EncoderParts parts{.stages = {}, .predictors = predictors};
  for (const Level& level : levels)
    if (level.stage != Encoder::kTop) parts.stages.push_back(level.stage);
  return parts;
}

EncoderParts encoder_parts(const Config& config) {
  return encoder_parts(levels_of(config), base_of(config.method).predictor);
}

}  // namespace csml
