// What Siamese says of its steps, for the log.
#include <algorithm>
#include <cmath>

#include "csml/method/siamese.h"

namespace csml {

namespace {

/// Mean over dimensions of the standard deviation over the batch, times sqrt(D): 1 for directions spread over the whole
/// sphere, 0 when all embeddings [N,D] are one point (collapse). Chen & He 2021 (SimSiam) watch the same number.
double feature_spread(const std::vector<float>& x, int64_t d) {
  const auto n = static_cast<int64_t>(x.size()) / d;
  double total = 0;
  for (int64_t j = 0; j < d; ++j) {
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < n; ++i) {
      const double v = x[static_cast<size_t>(i * d + j)];
      sum += v;
      squares += v * v;
    }
    const double mean = sum / static_cast<double>(n);
    total += std::sqrt(std::max(0.0, squares / static_cast<double>(n) - mean * mean));
  }
  return total / static_cast<double>(d) * std::sqrt(static_cast<double>(d));
}

}  // namespace

void Siamese::begin_measure(int64_t steps) {
  CHECK(last_query_ && steps > 0, "measure() before the first step");
  const std::pair<HostCopy&, const Tensor&> sums[] = {{measured_.losses, loss_sum_},
                                                      {measured_.total, total_sum_},
                                                      {measured_.positive, positive_sum_},
                                                      {measured_.negative, negative_sum_}};
  for (const auto& [copy, sum] : sums) {
    comm_.all_reduce_mean(sum);
    copy.start(sum);
    fill(sum, 0);
  }
  if (all_queries_) comm_.all_gather(last_query_, all_queries_);
  measured_.embeddings.start(all_queries_ ? all_queries_ : last_query_);
  measured_.finite.start(finite_);
  loss_scale_.begin_read();
  measured_.steps = steps;
  measured_.dim = last_query_.shape()[1];
  measured_.lr = lr_now_;
  measured_.momentum = momentum_now_;
  measured_.draw = draw_;
}

nlohmann::json Siamese::end_measure() {
  const Measured& m = measured_;
  CHECK(m.steps > 0, "end_measure() without begin_measure()");
  const auto mean = [&](const HostCopy& sum) { return sum.values<float>()[0] / static_cast<double>(m.steps); };
  const std::vector<float> losses = m.losses.values<float>();
  nlohmann::json out, by_term, by_level = nlohmann::json::object();
  int full_terms = 0, crops = 0;
  for (const Plan::Term& term : plan_.terms) ++(term.crop ? crops : full_terms);
  for (size_t t = 0; t < losses.size(); ++t) {
    const auto& [level, term] = term_names_[t];
    const double loss = losses[t] / static_cast<double>(m.steps);
    by_term[level == levels_[0].name ? term : level + "." + term] = loss;
    const bool crop = term.starts_with("crop");
    // Mean over the full-size terms, as the loss has it, before factors and weights.
    if (!crop) by_level[level] = by_level.value(level, 0.0) + loss / full_terms;
  }
  const double factor = base_.factor(config_) * plan_.directions;
  const std::vector<double>& w = config_.method.crop_weights;
  double share = 0;
  for (const Level& level : levels_) {
    const bool small = crops > 0 && level.name == levels_[0].name;
    share += level.weight * ((crops > 0 ? w[0] : 1) + (small ? w[1] * crops / plan_.directions : 0));
  }
  out["loss"] = mean(m.total);
  out["loss_terms"] = by_term;
  out["loss_levels"] = by_level;
  out["chance"] = base_.chance(config_) * factor * share;
  out["positive_similarity"] = mean(m.positive);
  out["negative_similarity"] = mean(m.negative);
  out["feature_spread"] = feature_spread(m.embeddings.values<float>(), m.dim);
  out["lr"] = m.lr;
  if (f_k_) out["momentum"] = m.momentum;
  if (plan_.draw) {
    out["lambda"] = m.draw.lambda;
    out["weights"] = m.draw.pair;
  }
  if (loss_scale_) {
    const LossScale::Reading scaling = loss_scale_.end_read();
    out["loss_scale"] = scaling.scale;
    out["skipped_steps"] = scaling.skipped;
  }
  out["finite"] = m.finite.values<int32_t>()[0] == 1;
  return out;
}

}  // namespace csml
