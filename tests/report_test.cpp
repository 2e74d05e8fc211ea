// What the report reads: metrics of any content, and the charts drawn from them.
#include "apps/html.h"
#include "apps/run_metrics.h"
#include "engine/json.h"

#include "tests/files.h"

#include <cmath>

using namespace csml;

TEST_CASE("metrics: lines by kind, what is no object is left out") {
  const Metrics metrics = parse_metrics(
      "{\"kind\":\"step\",\"step\":10,\"loss\":2.5,\"loss_terms\":{\"q\":1.5}}\n"
      "{\"kind\":\"epoch\",\"step\":20,\"epoch\":1}\n[1]\n\n"
      "{\"kind\":\"step\",\"step\":30,\"loss\":null}\n{\"kind\":\"eval\",\"st");
  REQUIRE(metrics.step.size() == 2);
  CHECK(metrics.epoch.size() == 1);
  CHECK(metrics.eval.empty());
  CHECK(metrics.steps_per_epoch == 10);
  CHECK(metrics.x(metrics.step[1]) == 3);
  const Series loss = series(metrics, metrics.step, "loss", "loss");
  CHECK(last(loss) == 2.5);
  CHECK(series(metrics, metrics.step, "q", "loss_terms.q", 2).points[0].second == 3);
}

TEST_CASE("metrics: values of other types than ours are no values") {
  const Metrics metrics = parse_metrics(
      "{\"kind\":\"step\",\"step\":\"ten\",\"loss\":\"x\",\"loss_terms\":3}\n"
      "{\"kind\":\"epoch\",\"step\":5,\"epoch\":\"one\"}\n{\"kind\":7}\n");
  REQUIRE(metrics.step.size() == 1);
  CHECK(metrics.x(metrics.step[0]) == 0);
  CHECK(metrics.steps_per_epoch == 0);
  CHECK(!has_values(series(metrics, metrics.step, "loss", "loss")));
  CHECK(!has_values(series(metrics, metrics.step, "q", "loss_terms.q")));
  CHECK(text_of(metrics.step[0], "step") == "ten");
}

TEST_CASE("JSON that is nested deeper than copying and printing can follow is none") {
  const auto nested = [](size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  CHECK(parse_json(nested(60)).is_array());
  CHECK(parse_json(nested(300'000)).is_discarded());
  CHECK(parse_json("{\"a\":" + nested(300'000) + "}").is_discarded());
  CHECK(parse_json("\"\xFF\"").is_discarded());
  CHECK(parse_json("").is_discarded());
}

TEST_CASE("a chart of values that doubles hardly tell apart, or hardly hold, has few ticks") {
  const double kInfinity = std::numeric_limits<double>::infinity();
  const std::pair<double, double> ranges[] = {
      {1e16, 1e16 + 2}, {-1e300, 1e300}, {-1.7e308, 1.7e308}, {0, 5e-324},        {kInfinity, 1},
      {3, 3},           {0, 0},          {-1e16 - 2, -1e16},  {1e-300, 1.1e-300}, {0.999999, 1}};
  for (const auto& [low, high] : ranges) {
    for (const bool on_x : {false, true}) {
      Chart chart{.title = "t", .note = "", .series = {{"a", {{1, low}, {2, high}}}}};
      if (on_x) chart.series = {{"a", {{low, 1}, {high, 2}}}};
      const std::string html = chart_html(chart);
      CHECK_MESSAGE(html.size() < 20'000, cat("{} {} {}", low, high, on_x));
      CHECK(!contains(html, "nan"));
    }
  }
  CHECK(chart_html({.title = "t", .note = "", .series = {{"a", {{1, kInfinity}}}}}).empty());
  Chart chart{.title = "t", .note = "", .series = {{"a", {{1, 2}, {2, 3}}}}};
  for (const double level : {-1.7e308, kInfinity, 2.5}) {
    chart.level = {level, "level"};
    CHECK(contains(chart_html(chart), "class=\"level\"") == (level == 2.5));
  }
}
