// metrics.jsonl of a run, as csml report reads it: lines by kind, and curves out of them.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "apps/html.h"

namespace csml {

/// Lines of a run by their "kind", in the order of the file.
struct Metrics {
  std::vector<nlohmann::json> step, epoch, eval, event;
  double steps_per_epoch = 0;  // 0: unknown
  std::string x_label() const { return steps_per_epoch > 0 ? "epoch" : "step"; }
  /// Where a line stands on the x axis; 0 when it does not say.
  double x(const nlohmann::json& line) const;
};

/// The lines that are JSON objects (parse_json); others, such as the torn last one of a killed run, are left out.
std::vector<nlohmann::json> parse_json_lines(std::string_view text);
Metrics parse_metrics(std::string_view text);
/// The same of a file; nothing when it does not exist. Throws Error when it cannot be read.
std::vector<nlohmann::json> read_json_lines(const std::filesystem::path& path);
Metrics read_metrics(const std::filesystem::path& path);

/// A number of a line; NaN when it has none by that name.
double number(const nlohmann::json& line, const std::string& key);
/// A value of a line as text; empty when it has none by that name.
std::string text_of(const nlohmann::json& line, const std::string& key);

/// One point per line: x(line), and factor times the number named `key` ("loss") or "object.key" ("loss_terms.q").
Series series(const Metrics& metrics, const std::vector<nlohmann::json>& lines, const std::string& name,
              const std::string& key, double factor = 1);
bool has_values(const Series& s);
/// The last value, and the upper median of all; NaN without values.
double last(const Series& s);
double median(const Series& s);

}  // namespace csml
