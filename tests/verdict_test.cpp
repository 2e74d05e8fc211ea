// The verdict on a run: every state by a series of its own, and none by a healthy one.
#include "apps/verdict.h"

#include "tests/files.h"

#include <functional>
#include <set>

using namespace csml;

namespace {

/// A healthy run of `epochs` epochs of ten steps, with what `change` makes of each epoch's numbers.
struct Numbers {
  double loss, chance = 6.24, spread, negative = 0.02, knn, purity = 0.7, wait = 0.01;
  bool finite = true;
};

Metrics run(
    int epochs, const std::function<void(int, Numbers&)>& change = [](int, Numbers&) {}) {
  std::string text = "{\"kind\":\"eval\",\"step\":0,\"top1\":30,\"n_test\":2000}\n";
  for (int e = 0; e < epochs; ++e) {
    Numbers n{.loss = 5 - 0.1 * e, .spread = 0.6 + 0.02 * e, .knn = 40.0 + 2 * e};
    change(e, n);
    for (int s = 1; s <= 2; ++s)
      text += cat(
          "{{\"kind\":\"step\",\"step\":{},\"loss\":{},\"chance\":{},\"feature_spread\":{},\"negative_similarity\":{},"
          "\"data_wait\":{},\"finite\":{}}}\n",
          10 * e + 5 * s, n.loss, n.chance, n.spread, n.negative, n.wait, n.finite);
    text += cat("{{\"kind\":\"epoch\",\"step\":{},\"epoch\":{},\"purity\":{}}}\n", 10 * (e + 1), e, n.purity);
    text += cat("{{\"kind\":\"eval\",\"step\":{},\"top1\":{},\"n_test\":2000}}\n", 10 * (e + 1), n.knn);
  }
  return parse_metrics(text);
}

}  // namespace

TEST_CASE("verdict: a healthy run learns, an empty one is too early") {
  const Verdict v = judge(run(12));
  CHECK(v.state == "learns");
  CHECK(v.health == Verdict::Health::ok);
  CHECK(v.text() == "It learns: k-NN is 62.0 %, +32.0 points over the untrained encoder.");
  CHECK(judge(parse_metrics("")).state == "too early");
  CHECK(judge(parse_metrics("{\"kind\":\"step\",\"step\":1,\"loss\":null}")).state == "too early");
}

TEST_CASE("verdict: each kind of trouble is called by its name") {
  using Change = std::function<void(int, Numbers&)>;
  const std::pair<const char*, Change> troubles[] = {
      {"collapsed", [](int, Numbers& n) { n.spread = 0.1; }},
      {"collapsing", [](int e, Numbers& n) { n.spread = 0.9 - 0.04 * e; }},
      {"skips steps", [](int e, Numbers& n) { n.finite = e < 11; }},
      {"at chance", [](int, Numbers& n) { n.loss = 6.23; }},
      {"below untrained", [](int, Numbers& n) { n.knn = 25; }},
      {"degrades", [](int e, Numbers& n) { n.knn = e < 6 ? 40 + 3 * e : 50 - e; }},
      {"negatives close", [](int, Numbers& n) { n.negative = 0.5; }},
      {"loss rises", [](int e, Numbers& n) { n.loss = 4 + 0.1 * e; }},
      {"stalled", [](int e, Numbers& n) { n.knn = e < 6 ? 40 + 2 * e : 50; }},
      {"neighbours useless", [](int, Numbers& n) { n.purity = 0.2; }},
      {"waits for data", [](int, Numbers& n) { n.wait = 0.4; }}};
  std::set<std::string> seen{"learns", "too early"};
  for (const auto& [state, change] : troubles) {
    CAPTURE(state);
    const Verdict v = judge(run(12, change));
    CHECK(v.state == state);
    CHECK(v.health != Verdict::Health::ok);
    CHECK(!v.advice.empty());
    CHECK(!contains(v.text(), "nan"));
    seen.insert(state);
  }
  CHECK(seen.size() == verdict_states().size());
  for (const VerdictState& known : verdict_states()) CHECK(seen.count(known.state) == 1);
}

TEST_CASE("verdict: what is within the scatter of the test set is no fall") {
  CHECK(judge(run(12, [](int e, Numbers& n) { n.knn = 60 + (e < 6 ? e : 8 - 0.1 * e); })).state == "learns");
  CHECK(judge(run(1, [](int, Numbers& n) { n.loss = 6.24; })).state ==
        "learns");  // one epoch tells nothing of the loss
}

TEST_CASE("verdict: without labels the loss speaks") {
  std::string text;
  for (int s = 1; s < 40; ++s)
    text += cat("{{\"kind\":\"step\",\"step\":{},\"loss\":{},\"chance\":6.2}}\n", 10 * s, 5 - 0.01 * s);
  text += "{\"kind\":\"epoch\",\"step\":100,\"epoch\":0}\n";
  const Verdict v = judge(parse_metrics(text));
  CHECK(v.state == "learns");
  CHECK(contains(v.text(), "without labelled images (--probe) nothing else can be said"));
}
