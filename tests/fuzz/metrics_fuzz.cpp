// Any bytes as the metrics.jsonl of a run, read and drawn as csml report does.
#include "apps/html.h"
#include "apps/run_metrics.h"
#include "apps/verdict.h"
#include "tests/fuzz/target.h"

using namespace csml;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  const Metrics metrics = parse_metrics(fuzz::text_of({data, bytes}));  // never throws: other lines are left out
  const std::vector<Series> all{
      series(metrics, metrics.step, "loss", "loss"), series(metrics, metrics.step, "q", "loss_terms.q"),
      series(metrics, metrics.epoch, "purity", "purity", 100), series(metrics, metrics.eval, "top-1", "top1")};
  for (const bool from_zero : {false, true}) {
    Chart chart{.title = "Loss", .note = "", .x_label = metrics.x_label(), .series = all, .from_zero = from_zero};
    if (has_values(all[0])) chart.level = {last(all[0]), "last"};
    fuzz::require(chart_html(chart).size() < (size_t{1} << 20) + 1000 * bytes, "a chart is of bounded size");
  }
  for (const auto* lines : {&metrics.step, &metrics.epoch, &metrics.eval, &metrics.event})
    for (const nlohmann::json& line : *lines)
      for (const char* key : {"text", "event", "step", "task"}) escape_html(text_of(line, key));
  for (const Series& s : all) median(s);
  fuzz::require(judge(metrics).text().size() < 1000, "there is a verdict on everything");
  return 0;
}
