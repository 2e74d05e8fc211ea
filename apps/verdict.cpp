#include "apps/verdict.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "kernels/check.h"

namespace csml {
namespace {

using Health = Verdict::Health;
using Points = std::vector<std::pair<double, double>>;

/// The finite points of a curve.
Points finite(const Series& s) {
  Points points;
  for (const auto& point : s.points)
    if (std::isfinite(point.second)) points.push_back(point);
  return points;
}

double mean(const Points& points, size_t first, size_t count) {
  double sum = 0;
  for (size_t i = first; i < first + count; ++i) sum += points[i].second;
  return sum / static_cast<double>(count);
}

/// What the rules look at.
struct Curves {
  Points loss, chance, spread, negative, knn, purity, wait;
  double epochs = 0;          // done so far
  double standard_error = 0;  // of a k-NN accuracy, points
  bool untrained = false;     // the first k-NN is that of the untrained encoder
  double skipped = 0;         // share of the last step lines that were not finite
};

double standard_error_of(const nlohmann::json& line) {
  const double n = number(line, "n_test"), p = number(line, "top1") / 100;
  return n >= 1 && p >= 0 && p <= 1 ? 100 * std::sqrt(std::max(p * (1 - p), 0.0) / n) : 0;
}

double share_not_finite(const std::vector<nlohmann::json>& lines) {
  const size_t count = std::min<size_t>(lines.size(), 20);
  size_t bad = 0;
  for (size_t i = lines.size() - count; i < lines.size(); ++i) {
    const auto found = lines[i].find("finite");
    bad += found != lines[i].end() && found->is_boolean() && !found->get<bool>();
  }
  return count == 0 ? 0 : static_cast<double>(bad) / static_cast<double>(count);
}

Curves curves_of(const Metrics& m) {
  const auto of_steps = [&](const char* key) { return finite(series(m, m.step, "", key)); };
  Curves c{.loss = of_steps("loss"),
           .chance = of_steps("chance"),
           .spread = of_steps("feature_spread"),
           .negative = of_steps("negative_similarity"),
           .knn = finite(series(m, m.eval, "", "top1")),
           .purity = finite(series(m, m.epoch, "", "purity")),
           .wait = of_steps("data_wait")};
  if (m.steps_per_epoch > 0 && !m.step.empty()) c.epochs = m.x(m.step.back());
  if (!m.eval.empty()) c.standard_error = standard_error_of(m.eval.back());
  c.untrained = c.knn.size() > 1 && number(m.eval.front(), "step") == 0;
  c.skipped = share_not_finite(m.step);
  return c;
}

Verdict verdict(Health health, const char* state, std::string reason) {
  Verdict v{health, state, std::move(reason), {}};
  for (const VerdictState& known : verdict_states())
    if (v.state == known.state && health != Health::ok) v.advice = known.helps;
  return v;
}

/// Points of k-NN that are more than chance.
double margin(const Curves& c, const VerdictRules& rules) {
  return std::max(rules.least_points, rules.standard_errors * c.standard_error);
}

std::optional<Verdict> judge_spread(const Curves& c, const VerdictRules& rules) {
  if (c.spread.empty()) return {};
  const double now = c.spread.back().second;
  if (now < rules.collapsed_spread)
    return verdict(
        Health::fail, "collapsed",
        cat("the feature spread is {:.2f}, below {}: embeddings point in few directions, and a low loss says "
            "nothing",
            now, rules.collapsed_spread));
  double most = 0;
  for (const auto& [x, y] : c.spread) most = std::max(most, y);
  if (c.spread.size() >= 4 && now < rules.falling_spread * most)
    return verdict(Health::warn, "collapsing", cat("the feature spread fell from {:.2f} to {:.2f}", most, now));
  return {};
}

std::optional<Verdict> judge_steps(const Curves& c, const VerdictRules& rules) {
  if (c.skipped > rules.skipped_share)
    return verdict(Health::warn, "skips steps",
                   cat("{:.0f} % of the last log lines had a loss or gradient that was not finite", 100 * c.skipped));
  if (c.epochs < rules.learning_epochs || c.chance.empty() || c.loss.empty()) return {};
  if (c.loss.back().second > c.chance.back().second - rules.chance_margin)
    return verdict(Health::fail, "at chance",
                   cat("after {:.1f} epochs the loss is {:.2f}, where an encoder that tells nothing apart has {:.2f}",
                       c.epochs, c.loss.back().second, c.chance.back().second));
  return {};
}

std::optional<Verdict> judge_knn(const Curves& c, const VerdictRules& rules) {
  if (c.knn.size() < 2) return {};
  const double now = c.knn.back().second, significant = margin(c, rules);
  if (c.untrained && c.epochs >= rules.learning_epochs && now < c.knn.front().second)
    return verdict(Health::fail, "below untrained",
                   cat("k-NN is {:.1f} %, that of the untrained encoder was {:.1f} %", now, c.knn.front().second));
  const auto best = std::max_element(c.knn.begin() + (c.untrained ? 1 : 0), c.knn.end(),
                                     [](const auto& a, const auto& b) { return a.second < b.second; });
  if (c.knn.end() - best > 2 && now < best->second - significant)
    return verdict(Health::warn, "degrades",
                   cat("k-NN is {:.1f} %, {:.1f} points below its best, which was at epoch {:.0f}", now,
                       best->second - now, best->first));
  return {};
}

std::optional<Verdict> judge_negatives(const Curves& c, const VerdictRules& rules) {
  if (c.epochs < rules.learning_epochs || c.negative.empty() || c.negative.back().second < rules.close_negatives)
    return {};
  return verdict(Health::warn, "negatives close",
                 cat("the mean cosine to negatives is {:.2f}, where it should be near 0", c.negative.back().second));
}

std::optional<Verdict> judge_loss(const Curves& c, const VerdictRules& rules) {
  const size_t quarter = c.loss.size() / 4;
  if (quarter < 3 || c.epochs < 2 * rules.learning_epochs) return {};
  const double before = mean(c.loss, c.loss.size() - 2 * quarter, quarter);
  const double now = mean(c.loss, c.loss.size() - quarter, quarter);
  if (!(now > before * (1 + rules.rising_loss))) return {};
  return verdict(Health::warn, "loss rises",
                 cat("the loss rose from {:.3f} to {:.3f} over the last half of the run", before, now));
}

/// No gain over the last half of the evaluations.
std::optional<Verdict> judge_progress(const Curves& c, const VerdictRules&) {
  if (c.knn.size() < 6) return {};
  const size_t half = c.knn.size() / 2;
  const auto later = std::max_element(c.knn.end() - static_cast<std::ptrdiff_t>(half), c.knn.end(),
                                      [](const auto& a, const auto& b) { return a.second < b.second; });
  const auto earlier = std::max_element(c.knn.begin(), c.knn.end() - static_cast<std::ptrdiff_t>(half),
                                        [](const auto& a, const auto& b) { return a.second < b.second; });
  if (later->second > earlier->second + std::max(0.5, c.standard_error)) return {};
  return verdict(Health::warn, "stalled",
                 cat("k-NN has not gained since epoch {:.0f}, when it was {:.1f} %", earlier->first, earlier->second));
}

std::optional<Verdict> judge_neighbours(const Curves& c, const VerdictRules& rules) {
  if (c.purity.size() < 2 || c.purity.back().second >= rules.useless_purity) return {};
  return verdict(
      Health::warn, "neighbours useless",
      cat("{:.0f} % of the neighbours are of the image's class; below {:.0f} % their terms cost more than they "
          "give",
          100 * c.purity.back().second, 100 * rules.useless_purity));
}

std::optional<Verdict> judge_wait(const Curves& c, const VerdictRules& rules) {
  if (c.wait.empty()) return {};
  Series s{"", c.wait};
  if (const double wait = median(s); wait > rules.data_wait)
    return verdict(Health::warn, "waits for data", cat("{:.0f} % of the time no batch was ready", 100 * wait));
  return {};
}

Verdict learns(const Curves& c) {
  if (c.knn.size() > 1 && c.untrained)
    return verdict(Health::ok, "learns",
                   cat("k-NN is {:.1f} %, {:+.1f} points over the untrained encoder", c.knn.back().second,
                       c.knn.back().second - c.knn.front().second));
  if (!c.loss.empty() && !c.chance.empty())
    return verdict(Health::ok, "learns",
                   cat("the loss is {:.2f}, where chance is {:.2f}{}", c.loss.back().second, c.chance.back().second,
                       c.knn.empty() ? "; without labelled images (--probe) nothing else can be said" : ""));
  return verdict(Health::ok, "learns", "nothing speaks against it");
}

}  // namespace

std::string Verdict::text() const {
  const char* sentence = "It";
  for (const VerdictState& known : verdict_states())
    if (state == known.state) sentence = known.sentence;
  return cat("{}: {}.{}", sentence, reason, advice.empty() ? "" : cat(" {}", advice));
}

const std::vector<VerdictState>& verdict_states() {
  static const std::vector<VerdictState> states = {
      {"too early", "It is too early to tell", "Less than two epochs are done.", "Wait."},
      {"collapsed", "It has collapsed", "All images have nearly the same embedding.",
       "Take the method's published recipe, batch norm in the heads (model.head_bn), a larger batch or a higher "
       "momentum."},
      {"collapsing", "It is collapsing", "Embeddings move towards few directions.",
       "Lower schedule.lr, or take the method's published recipe; go back to a checkpoint from before the fall."},
      {"skips steps", "It skips steps", "Steps without a finite gradient change nothing.",
       "Lower schedule.lr; CSML_NAN=1 names the op that makes the first NaN."},
      {"at chance", "It has learnt nothing", "The loss is that of an encoder that tells nothing apart.",
       "A smaller queue, method.momentum = 0.99, more steps, or weaker augmentation."},
      {"below untrained", "It is worse than untrained", "Training has made the features less useful.",
       "Look at the views (they may cut away what matters), lower schedule.lr, or train for longer."},
      {"degrades", "It degrades", "The encoder was better before.",
       "Take the milestone nearest to the best epoch, and a shorter or lower schedule."},
      {"negatives close", "It does not part images",
       "Embeddings of other images are nearly as close as an image's own.",
       "A lower method.temperature, or a larger queue or batch."},
      {"loss rises", "Its loss rises", "The last quarter of the run has a higher loss than the one before.",
       "Where no new term came in (a warm-up that ended), lower schedule.lr."},
      {"stalled", "It has stalled", "The second half of the run brought no gain in k-NN.",
       "More epochs will not help much: try more data, a larger encoder or another schedule."},
      {"neighbours useless", "It learns, but its neighbours are mostly wrong",
       "Fewer neighbours than that are of the image's own class, and the terms that pull towards them cost more than "
       "they "
       "give.",
       "A longer method.warmup_epochs, --method moco for longer instead, or method.weights=1,0 (both images, own "
       "keys)."},
      {"waits for data", "It learns, but waits for data", "The network stands still without a batch.",
       "More data.workers, smaller images, or csml pack."},
      {"learns", "It learns", "None of the above.", ""}};
  return states;
}

Verdict judge(const Metrics& metrics, const VerdictRules& rules) {
  const Curves c = curves_of(metrics);
  if (c.loss.empty() && c.knn.empty()) return verdict(Health::ok, "too early", "no step has been logged");
  for (const auto rule : {judge_spread, judge_steps, judge_knn, judge_negatives, judge_loss, judge_progress,
                          judge_neighbours, judge_wait})
    if (std::optional<Verdict> found = rule(c, rules)) return *found;
  if (metrics.steps_per_epoch > 0 && c.epochs < rules.learning_epochs && c.knn.size() < 2)
    return verdict(Health::ok, "too early", cat("{:.1f} epochs are done", c.epochs));
  return learns(c);
}

}  // namespace csml
