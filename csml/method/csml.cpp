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
  const Base& base = base_of(config.method);
  const std::vector<std::string>& terms = config.method.terms;
  const auto uses = [&](const char* term) { return std::find(terms.begin(), terms.end(), term) != terms.end(); };
  const bool cross = uses_partner(config.method);
  Plan plan;
  plan.directions = config.method.directions;
  plan.neighbors = cross;
  plan.draw = draw;
  const bool shuffled = base.momentum_encoder && plan.directions == 1;
  using Source = ViewSpec::Source;
  using Weight = Plan::Weight;
  const auto anchor_view = [&](const char* name, Source source, int image) {
    return plan.add_view(name, {.source = source, .augment = config.augment, .number = 0, .shuffle = -1}, image);
  };
  const auto key_view = [&](const char* name, Source source, int image) {
    const int shuffle = shuffled ? image : -1;  // the keys of either image in an order of their own
    return plan.add_view(name, {.source = source, .augment = second_view(config), .number = 0, .shuffle = shuffle},
                         image);
  };
  const int q = anchor_view("q", Source::own, 0), k = key_view("k", Source::own, 0);
  plan.names = {.q = q, .k = k};
  if (!cross) {
    plan.add_term("q", q, {{Weight::w0, k}});
    plan.add_swapped();
    plan.add_crops(config, {{Weight::w0, k}});
    return plan;
  }
  const int p = anchor_view("p", Source::neighbor, 1), kp = key_view("kp", Source::neighbor, 1);
  plan.names = {.q = q, .k = k, .p = p, .kp = kp};
  if (uses("q")) plan.add_term("q", q, {{Weight::w0, k}, {Weight::w1, kp}});
  if (uses("p")) plan.add_term("p", p, {{Weight::w0, kp}, {Weight::w1, k}});
  if (uses("m")) {
    const int m = plan.add_mixed("m", q, p);
    plan.add_term("m", m, {{Weight::lambda, k}, {Weight::one_minus_lambda, kp}});
  }
  plan.add_swapped();
  plan.add_crops(config, {{Weight::w0, k}, {Weight::w1, kp}});
  return plan;
}

}  // namespace csml
