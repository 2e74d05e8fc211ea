#include "apps/run_metrics.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/file.h"
#include "engine/json.h"

namespace csml {
namespace {

using nlohmann::json;

constexpr size_t kMostTextBytes = size_t{1} << 30;
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

Metrics by_kind(std::vector<json> lines) {
  Metrics metrics;
  for (json& line : lines) {
    const std::string kind = text_of(line, "kind");
    if (kind == "epoch" && metrics.steps_per_epoch == 0 && number(line, "step") > 0 && number(line, "epoch") >= 0)
      metrics.steps_per_epoch = number(line, "step") / (number(line, "epoch") + 1);
    if (kind == "step")
      metrics.step.push_back(std::move(line));
    else if (kind == "epoch")
      metrics.epoch.push_back(std::move(line));
    else if (kind == "eval")
      metrics.eval.push_back(std::move(line));
    else if (kind == "event")
      metrics.event.push_back(std::move(line));
  }
  return metrics;
}

}  // namespace

double Metrics::x(const json& line) const {
  const double step_number = number(line, "step");
  if (!std::isfinite(step_number)) return 0;
  return steps_per_epoch > 0 ? step_number / steps_per_epoch : step_number;
}

double number(const json& line, const std::string& key) {
  const auto found = line.find(key);
  return found != line.end() && found->is_number() ? found->get<double>() : kNan;
}

std::string text_of(const json& line, const std::string& key) {
  const auto found = line.find(key);
  if (found == line.end() || found->is_null()) return "";
  return found->is_string() ? found->get<std::string>() : json_line(*found);
}

std::vector<json> parse_json_lines(std::string_view text) {
  std::vector<json> lines;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    json line = parse_json(text.substr(at, end - at));
    if (line.is_object()) lines.push_back(std::move(line));
    at = end + 1;
  }
  return lines;
}

std::vector<json> read_json_lines(const std::filesystem::path& path) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return {};
  return parse_json_lines(read_text_file(path, kMostTextBytes));
}

Metrics parse_metrics(std::string_view text) { return by_kind(parse_json_lines(text)); }
Metrics read_metrics(const std::filesystem::path& path) { return by_kind(read_json_lines(path)); }

Series series(const Metrics& metrics, const std::vector<json>& lines, const std::string& name, const std::string& key,
              double factor) {
  Series out{name, {}};
  for (const json& line : lines) {
    const size_t dot = key.find('.');
    double value = kNan;
    if (dot == std::string::npos)
      value = number(line, key);
    else if (line.contains(key.substr(0, dot)))
      value = number(line[key.substr(0, dot)], key.substr(dot + 1));
    out.points.emplace_back(metrics.x(line), value * factor);
  }
  return out;
}

bool has_values(const Series& s) {
  return std::any_of(s.points.begin(), s.points.end(), [](const auto& p) { return std::isfinite(p.second); });
}

double last(const Series& s) {
  for (auto it = s.points.rbegin(); it != s.points.rend(); ++it)
    if (std::isfinite(it->second)) return it->second;
  return kNan;
}

double median(const Series& s) {
  std::vector<double> values;
  for (const auto& [x, y] : s.points)
    if (std::isfinite(y)) values.push_back(y);
  if (values.empty()) return kNan;
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

}  // namespace csml
