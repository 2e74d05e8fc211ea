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
  /// The factors of a formula. StepDraw gives (w0, w1) = pair and (lambda, 1 - lambda) = mixed, which may be gated to
  /// (0, 0).
  enum class Weight { one, w0, w1, lambda, one_minus_lambda };
  static constexpr int kWeights = 5;
  /// weight * E(anchor, key)
  struct Pull {
    Weight weight;
    int key;  // slot
  };
  /// sum over its keys of weight * E(anchor, key)
  struct Term {
    std::string name{};
    int anchor = 0;
    std::vector<int> keys{};      // slots
    Weight weight = Weight::one;  // of the first key; the next key has the next weight
    int direction = 0;            // 0: the keys show views k, kp; 1: views q, p
    bool crop = false;            // of a small crop: last level only
  };

  std::vector<ViewSpec> views;
  std::vector<Slot> slots;
  std::vector<Term> terms;
  int directions = 1;
  bool neighbors = false;                                                  // a view shows a neighbour
  std::function<StepDraw(const Config&, const StepInfo&)> draw = nullptr;  // null: StepDraw{} always

  /// Slots by meaning: the two views of the sample and, where `neighbors`, of its partner (else -1).
  struct Names {
    int q = -1, k = -1, p = -1, kp = -1;
    Names swapped() const { return {.q = k, .k = q, .p = kp, .kp = p}; }
    /// The slot in whose place `slot` stands in the other direction; itself where it is none of the four.
    int opposite(int slot) const;
  };
  Names names;
  /// The names as the terms of a direction use them: in direction 1, q and k, p and kp are in each other's place.
  Names named(int direction) const { return direction == 0 ? names : names.swapped(); }

  int add_view(const std::string& name, ViewSpec spec, int image, bool crop = false);
  /// The image that shows the step's box of slot `paste` inside slot `base`.
  int add_mixed(const std::string& name, int base, int paste);
  /// A term of direction 0, its pulls in the order of Weight.
  void add_term(const std::string& name, int anchor, const std::vector<Pull>& pulls);
  /// With two directions: each term so far once more, with q and k, p and kp in each other's place.
  void add_swapped();
  /// Small crops (method.crop_*) of the sample as further anchors, each with the pulls given.
  void add_crops(const Config& config, const std::vector<Pull>& pulls);

 private:
  int swapped_slot(int slot);
  Term swapped_term(const Term& term);
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
