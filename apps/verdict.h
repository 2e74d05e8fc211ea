// One sentence about a run: whether it learns, why that is so, and what to do if not.
#pragma once

#include <string>
#include <vector>

#include "apps/run_metrics.h"

namespace csml {

/// Thresholds of judge(); docs/reading-a-run.md ("The verdict") explains each.
struct VerdictRules {
  double collapsed_spread = 0.2;  // feature spread below which embeddings have collapsed
  double falling_spread = 0.7;    // and share of its highest value below which it is on the way there
  double chance_margin = 0.05;    // loss nearer to chance than this has learnt nothing
  double learning_epochs = 2;     // epochs after which that counts
  double standard_errors = 3;     // k-NN differences that count, in standard errors of the test set's size
  double least_points = 1;        // and in points
  double close_negatives = 0.3;   // mean cosine to negatives above which images are not told apart
  double useless_purity = 0.3;    // share of right neighbours below which their terms cost more than they give
  double data_wait = 0.1;         // share of the time without a ready batch
  double rising_loss = 0.02;      // share by which the last quarter's loss exceeds the quarter before
  double skipped_share = 0.01;    // steps without a finite gradient
};

struct Verdict {
  enum class Health { ok, warn, fail };
  Health health = Health::ok;
  std::string state;   // "learns", "collapsing", …: a word for programs
  std::string reason;  // one sentence with the numbers behind it
  std::string advice;  // what to do; empty where all is well
  /// "It learns: …" in one line of text.
  std::string text() const;
};

/// By the first rule that applies, from what ends a run to what slows it. Never throws.
Verdict judge(const Metrics& metrics, const VerdictRules& rules = {});

/// Every state with what it means and what helps, in the order of the rules: the fold of the report.
struct VerdictState {
  const char* state;
  const char* sentence;  // "It learns"
  const char* means;
  const char* helps;
};
const std::vector<VerdictState>& verdict_states();

}  // namespace csml
