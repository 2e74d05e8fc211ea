// CsMl's cross-sample views (Xu et al., "Seed the Views"; the authors' released experiment; docs/method.md, section 2).
//   x_i with its drawn neighbour x_j;  q, k = views of x_i;  p, kp = views of x_j;  m = CutMix(q, p)
//   E(a, b) = the base's loss of anchor a and positive b: for MoCo, InfoNCE against the queue
//   L_q = w0 E(q,k)  + w1 E(q,kp)      L_p = w0 E(p,kp) + w1 E(p,k)      L_m = lambda E(m,k) + (1-lambda) E(m,kp)
//   L = (L_q + L_p + L_m) / 3;  only k is enqueued.
// Over a symmetrised base the same once more with q and k, p and kp in each other's place.
#include <algorithm>

#include "csml/method/plan.h"

namespace csml {

namespace {

StepDraw draw(const Config& config, const StepInfo& info) {
  const MethodConfig& m = config.method;
  const CutMixDraw cut = draw_cutmix(config.train.seed, static_cast<uint64_t>(info.step), config.augment.crop_size,
                                     static_cast<float>(m.cutmix_alpha));
  const bool warmup = info.epoch < m.warmup_epochs;
  const std::vector<double>& w = warmup ? m.warmup_weights : m.weights;
  StepDraw out{.box = {cut.box[0], cut.box[1], cut.box[2], cut.box[3]},
               .lambda = cut.lambda,
               .pair = {static_cast<float>(w[0]), static_cast<float>(w[1])},
               .mixed = {cut.lambda, 1 - cut.lambda}};
  if (warmup && m.warmup_gates_mixed) out.mixed = {0, 0};
  return out;
}

}  // namespace

Plan cross_sample_plan(const Config& config) {
  const MethodConfig& m = config.method;
  const Base& base = base_of(m);
  const auto uses = [&](const char* term) { return std::find(m.terms.begin(), m.terms.end(), term) != m.terms.end(); };
  const bool cross = uses_partner(m);
  Plan plan;
  plan.directions = m.directions;
  plan.neighbors = cross;
  plan.draw = draw;
  const bool shuffled = base.momentum_encoder && plan.directions == 1;
  using Source = ViewSpec::Source;
  const auto anchor_view = [&](const char* name, Source source, int image) {
    return plan.add_view(name, {.source = source, .augment = config.augment, .number = 0, .shuffle = -1}, image);
  };
  const auto key_view = [&](const char* name, Source source, int image) {
    const int shuffle = shuffled ? image : -1;  // the keys of either image in an order of their own
    return plan.add_view(name, {.source = source, .augment = second_view(config), .number = 0, .shuffle = shuffle},
                         image);
  };
  const int q = anchor_view("q", Source::own, 0), k = key_view("k", Source::own, 0);
  if (!cross) {
    plan.terms.push_back({.name = "q", .anchor = q, .keys = {k}, .weights = Plan::Weights::own});
    if (plan.directions == 2)
      plan.terms.push_back({.name = "q_back", .anchor = k, .keys = {q}, .weights = Plan::Weights::own, .direction = 1});
    plan.add_crops(config, {k}, {q}, Plan::Weights::own);
    return plan;
  }
  const int p = anchor_view("p", Source::neighbor, 1), kp = key_view("kp", Source::neighbor, 1);
  const auto add_direction = [&](int a, int own, int b, int partner, int direction) {
    const auto term = [&](const std::string& name, int anchor, std::vector<int> keys, Plan::Weights weights) {
      plan.terms.push_back({.name = name, .anchor = anchor, .keys = keys, .weights = weights, .direction = direction});
    };
    const std::string back = direction ? "_back" : "";
    if (uses("q")) term("q" + back, a, {own, partner}, Plan::Weights::pair);
    if (uses("p")) term("p" + back, b, {partner, own}, Plan::Weights::pair);
    if (!uses("m")) return;
    plan.slots.push_back({.name = "m" + back, .view = -1, .base = a, .paste = b, .image = 2, .crop = false});
    term("m" + back, static_cast<int>(plan.slots.size()) - 1, {own, partner}, Plan::Weights::mixed);
  };
  add_direction(q, k, p, kp, 0);
  if (plan.directions == 2) add_direction(k, q, kp, p, 1);
  plan.add_crops(config, {k, kp}, {q, p}, Plan::Weights::pair);
  return plan;
}

}  // namespace csml
