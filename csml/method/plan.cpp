#include "csml/method/plan.h"

namespace csml {

int Plan::add_view(const std::string& name, ViewSpec spec, int image, bool crop) {
  spec.number = static_cast<uint32_t>(views.size());
  slots.push_back(
      {.name = name, .view = static_cast<int>(views.size()), .base = -1, .paste = -1, .image = image, .crop = crop});
  views.push_back(std::move(spec));
  return static_cast<int>(slots.size()) - 1;
}

int Plan::Names::opposite(int slot) const {
  const Names other = swapped();
  if (slot == q) return other.q;
  if (slot == k) return other.k;
  if (slot == p) return other.p;
  return slot == kp ? other.kp : slot;
}

int Plan::add_mixed(const std::string& name, int base, int paste) {
  slots.push_back({.name = name, .view = -1, .base = base, .paste = paste, .image = 2, .crop = false});
  return static_cast<int>(slots.size()) - 1;
}

void Plan::add_term(const std::string& name, int anchor, const std::vector<Pull>& pulls) {
  Term term{.name = name, .anchor = anchor, .weight = pulls.at(0).weight};
  for (size_t j = 0; j < pulls.size(); ++j) {
    CHECK(static_cast<size_t>(pulls[j].weight) == static_cast<size_t>(term.weight) + j,
          "term {}: its weights must follow one another", name);
    term.keys.push_back(pulls[j].key);
  }
  terms.push_back(std::move(term));
}

int Plan::swapped_slot(int slot) {
  const Slot shown = slots.at(static_cast<size_t>(slot));
  if (shown.view >= 0) return names.opposite(slot);
  return add_mixed(shown.name + "_back", names.opposite(shown.base), names.opposite(shown.paste));
}

Plan::Term Plan::swapped_term(const Term& term) {
  Term back = term;
  back.name += "_back";
  back.direction = 1;
  back.anchor = swapped_slot(term.anchor);
  for (int& key : back.keys) key = swapped_slot(key);
  return back;
}

void Plan::add_swapped() {
  if (directions == 1) return;
  const std::vector<Term> forward = terms;
  for (const Term& term : forward) terms.push_back(swapped_term(term));
}

AugmentConfig second_view(const Config& config) {
  const MethodConfig& m = config.method;
  AugmentConfig recipe = config.augment;
  if (m.second_blur_p >= 0) recipe.blur_p = static_cast<float>(m.second_blur_p);
  if (m.second_solarize_p >= 0) recipe.solarize_p = static_cast<float>(m.second_solarize_p);
  return recipe;
}

std::vector<AugmentConfig> crop_recipes(const Config& config) {
  const MethodConfig& m = config.method;
  const size_t kinds = m.crop_sizes.size();
  const auto check = [&](const char* key, size_t length) {
    if (length != 0 && length != kinds)
      throw UsageError(
          cat("{} must have as many entries as method.crop_sizes ({}), or none, got {}", key, kinds, length));
  };
  check("method.crop_counts", m.crop_counts.size());
  check("method.crop_scale_min", m.crop_scale_min.size());
  check("method.crop_scale_max", m.crop_scale_max.size());
  std::vector<AugmentConfig> recipes;
  for (size_t i = 0; i < kinds; ++i) {
    AugmentConfig crop = config.augment;
    crop.crop_size = static_cast<int>(m.crop_sizes[i]);
    // The authors' table: the area's range shrinks as the side does.
    const float share = static_cast<float>(m.crop_sizes[i] / config.augment.crop_size);
    crop.scale_min = m.crop_scale_min.empty() ? share * crop.scale_min : static_cast<float>(m.crop_scale_min[i]);
    crop.scale_max = m.crop_scale_max.empty() ? share * crop.scale_max : static_cast<float>(m.crop_scale_max[i]);
    const int count = m.crop_counts.empty() ? 1 : static_cast<int>(m.crop_counts[i]);
    if (crop.crop_size != m.crop_sizes[i] || crop.crop_size < 8)
      throw UsageError(cat("method.crop_sizes must be whole numbers of at least 8 pixels, got {}", m.crop_sizes[i]));
    if (count < 1 || (!m.crop_counts.empty() && count != m.crop_counts[i]))
      throw UsageError(cat("method.crop_counts must be whole numbers of at least 1, got {}", m.crop_counts[i]));
    check_augment(crop);
    recipes.insert(recipes.end(), static_cast<size_t>(count), crop);
  }
  return recipes;
}

void Plan::add_crops(const Config& config, const std::vector<Pull>& pulls) {
  int number = 0;
  for (const AugmentConfig& recipe : crop_recipes(config)) {
    const std::string name = cat("crop{}_{}", number++, recipe.crop_size);
    const int slot = add_view(name, {.source = ViewSpec::Source::own, .augment = recipe}, 0, true);
    add_term(name, slot, pulls);
    terms.back().crop = true;
    if (directions == 2) terms.push_back(swapped_term(Term(terms.back())));
  }
}

Plan plain_plan(const Config& config) {
  const Base& base = base_of(config.method);
  Plan plan;
  plan.directions = config.method.directions;
  // Views that are anchors as well stay in the batch's order.
  const int shuffle = base.momentum_encoder && plan.directions == 1 ? 0 : -1;
  const int q = plan.add_view("q", {.source = ViewSpec::Source::own, .augment = config.augment}, 0);
  const int k = plan.add_view(
      "k", {.source = ViewSpec::Source::own, .augment = second_view(config), .number = 0, .shuffle = shuffle}, 0);
  plan.names = {.q = q, .k = k};
  plan.add_term("q", q, {{Plan::Weight::one, k}});
  plan.add_swapped();
  plan.add_crops(config, {{Plan::Weight::one, k}});
  return plan;
}

Plan plan_of(const Config& config) {
  return config.method.name == "csml" ? cross_sample_plan(config) : plain_plan(config);
}

}  // namespace csml
