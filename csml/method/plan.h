// Plan: a method as tables: its views, the images made of them, the terms of its loss. csml/method/siamese.h executes one.
#pragma once

#include <array>
#include <functional>
#include <string>
#include <vector>

#include "csml/method/base.h"
#include "data/loader.h"

namespace csml {

/// Where a step stands; all of it is known on the host before the step.
struct StepInfo {
  int64_t step = 0;  // optimizer steps done before this one
  int64_t epoch = 0;
  double progress = 0;  // fractional epoch
};

/// What a step draws or schedules for its terms.
struct StepDraw {
  std::array<int32_t, 4> box{};    // of CutMix: y0, x0, y1, x1
  float lambda = 1;                // its share of the first image
  std::vector<float> pair{1, 0};   // weights (own key, partner's key)
  std::vector<float> mixed{1, 0};  // the same of a mixed anchor
};

struct Plan {
  /// Images of the step: those of a view, or slot `base` with the step's box of slot `paste`.
  struct Slot {
    std::string name{};
    int view = -1;
    int base = -1, paste = -1;
    int image = 0;  // which image it shows: 0 the sample, 1 its partner, 2 both
    bool crop = false;
  };
  enum class Weights { one, own, pair, mixed };  // [1]: 1; [1]: pair[0]; [2]: pair; [2]: mixed
  /// sum over its keys of weight * loss(anchor, key)
  struct Term {
    std::string name{};
    int anchor = 0;
    std::vector<int> keys{};  // slots
    Weights weights = Weights::one;
    int direction = 0;  // 0: the keys show views k, kp; 1: views q, p
    bool crop = false;  // of a small crop: last level only
  };

  std::vector<ViewSpec> views;
  std::vector<Slot> slots;
  std::vector<Term> terms;
  int directions = 1;
  bool neighbors = false;                                                  // a view shows a neighbour
  std::function<StepDraw(const Config&, const StepInfo&)> draw = nullptr;  // null: StepDraw{} always

  /// Slots by meaning: the two views of the sample and, where `neighbors`, of its partner.
  static constexpr int kQ = 0, kK = 1, kP = 2, kKp = 3;

  int add_view(const std::string& name, ViewSpec spec, int image, bool crop = false);
  /// Small crops (method.crop_*) of the sample as further anchors of the two views' keys.
  void add_crops(const Config& config, const std::vector<int>& forward_keys, const std::vector<int>& backward_keys,
                 Weights weights);
};

/// The base alone: q against k and, with two directions, k against q.
Plan plain_plan(const Config& config);
/// CsMl over the configured base (csml/method/csml.cpp).
Plan cross_sample_plan(const Config& config);

/// What config.method.name asks for.
Plan plan_of(const Config& config);

/// The recipe of the second view of an image: augment's with method.second_*.
AugmentConfig second_view(const Config& config);
/// The recipes of the small crops, in order (docs/method.md, section 5). Throws UsageError for lists that do not match.
std::vector<AugmentConfig> crop_recipes(const Config& config);

}  // namespace csml
