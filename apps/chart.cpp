#include <algorithm>
#include <cmath>
#include <limits>

#include "apps/html.h"
#include "kernels/check.h"

namespace csml {
namespace {

constexpr double kWidth = 560, kHeight = 240, kLeft = 52, kRight = 14, kTop = 12, kBottom = 34;
constexpr size_t kMostPoints = 400;  // per line; more are averaged in buckets
constexpr double kLargest = 1e300;   // drawn at most: the extent of an axis must be a number

struct Axis {
  double low = 0, high = 1, step = 1;
  double share(double value) const { return (value - low) / (high - low); }
};

/// An axis over [low, high], both within kLargest, with about `count` ticks at multiples of 1, 2 or 5 times a power of
/// ten. What is nearly one value gets room around it: ticks must be told apart, as numbers too.
Axis make_axis(double low, double high, int count, bool to_ticks) {
  if (!(high - low > std::max(1e-300, 1e-9 * std::max(std::abs(low), std::abs(high))))) {
    const double half = std::max(1e-9, std::abs(low) * 0.05);
    low -= half, high += half;
  }
  const double raw = (high - low) / count, power = std::pow(10, std::floor(std::log10(raw)));
  double step = 10 * power;
  for (const double factor : {1.0, 2.0, 5.0})
    if (factor * power >= raw * 0.999) {
      step = factor * power;
      break;
    }
  if (to_ticks) low = std::floor(low / step + 1e-9) * step, high = std::ceil(high / step - 1e-9) * step;
  return {low, high, step};
}

std::string tick_text(double value, double step) {
  if (std::abs(value) < step * 1e-6) return "0";
  const double size = std::abs(value);
  if (size >= 1e6 || size < 1e-3) return cat("{:.3g}", value);
  return cat("{:.{}f}", value, std::clamp(static_cast<int>(-std::floor(std::log10(step) + 1e-9)), 0, 6));
}

/// The points that can be drawn; a value that cannot becomes a gap.
std::vector<std::pair<double, double>> drawable(std::vector<std::pair<double, double>> points) {
  std::erase_if(points, [](const auto& p) { return !(std::abs(p.first) <= kLargest); });
  for (auto& [x, y] : points)
    if (!(std::abs(y) <= kLargest)) y = std::numeric_limits<double>::quiet_NaN();
  return points;
}

std::vector<std::pair<double, double>> reduce(const std::vector<std::pair<double, double>>& points) {
  if (points.size() <= kMostPoints) return points;
  std::vector<std::pair<double, double>> out;
  const size_t bucket = (points.size() + kMostPoints - 1) / kMostPoints;
  for (size_t i = 0; i < points.size(); i += bucket) {
    double x = 0, y = 0;
    int64_t n = 0;
    for (size_t j = i; j < std::min(i + bucket, points.size()); ++j) {
      if (!std::isfinite(points[j].second)) continue;
      x += points[j].first, y += points[j].second, ++n;
    }
    if (n) out.emplace_back(x / static_cast<double>(n), y / static_cast<double>(n));
  }
  return out;
}

std::string last_text(const Series& series) {
  for (auto it = series.points.rbegin(); it != series.points.rend(); ++it)
    if (std::isfinite(it->second)) return cat("{:.4g}", it->second);
  return "";
}

}  // namespace

std::string escape_html(const std::string& text) {
  std::string out;
  for (char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::string chart_html(const Chart& chart) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  double x_low = kInfinity, x_high = -kInfinity, y_low = kInfinity, y_high = -kInfinity;
  std::vector<Series> lines;
  for (const Series& series : chart.series) {
    lines.push_back({series.name, reduce(drawable(series.points))});
    for (const auto& [x, y] : lines.back().points) {
      if (!std::isfinite(y)) continue;
      x_low = std::min(x_low, x), x_high = std::max(x_high, x);
      y_low = std::min(y_low, y), y_high = std::max(y_high, y);
    }
  }
  if (!std::isfinite(x_low)) return "";
  const auto level = chart.level && std::abs(chart.level->first) <= kLargest ? chart.level : std::nullopt;
  if (level) y_low = std::min(y_low, level->first), y_high = std::max(y_high, level->first);
  if (chart.from_zero) y_low = std::min(0.0, y_low);
  if (chart.top) y_high = *chart.top;
  const Axis x = make_axis(std::min(0.0, x_low), x_high, 6, false), y = make_axis(y_low, y_high, 4, true);
  const auto px = [&](double value) { return kLeft + x.share(value) * (kWidth - kLeft - kRight); };
  const auto py = [&](double value) { return kHeight - kBottom - y.share(value) * (kHeight - kTop - kBottom); };

  std::string svg =
      cat("<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\">\n", kWidth, kHeight, escape_html(chart.title));
  for (double v = y.low; v <= y.high + y.step / 2; v += y.step) {
    svg +=
        cat("<line class=\"grid\" x1=\"{:.1f}\" x2=\"{:.1f}\" y1=\"{:.1f}\" y2=\"{:.1f}\"/>"
            "<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"end\">{}</text>\n",
            kLeft, kWidth - kRight, py(v), py(v), kLeft - 7, py(v) + 4, tick_text(v, y.step));
  }
  for (double v = std::ceil(x.low / x.step) * x.step; v <= x.high + x.step * 1e-6; v += x.step)
    svg += cat("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{}</text>\n", px(v), kHeight - kBottom + 17,
               tick_text(v, x.step));
  svg += cat("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"end\">{}</text>\n", kWidth - kRight, kHeight - 4,
             escape_html(chart.x_label));
  if (level) {
    const double at = py(level->first);
    const bool below = at < kTop + 16;  // the label stays inside the picture
    svg +=
        cat("<line class=\"level\" x1=\"{:.1f}\" x2=\"{:.1f}\" y1=\"{:.1f}\" y2=\"{:.1f}\"/>"
            "<text class=\"level-text\" x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"end\">{}</text>\n",
            kLeft, kWidth - kRight, at, at, kWidth - kRight, below ? at + 14 : at - 5, escape_html(level->second));
  }
  for (size_t s = 0; s < lines.size(); ++s) {
    std::string path;
    bool pen_down = false;
    size_t drawn = 0;
    for (const auto& [at, value] : lines[s].points) {
      if (!std::isfinite(value)) {
        pen_down = false;
        continue;
      }
      path += cat("{}{:.1f} {:.1f}", pen_down ? "L" : "M", px(at), py(std::clamp(value, y.low, y.high)));
      pen_down = true;
      ++drawn;
    }
    svg += cat("<path class=\"line line-{}\" d=\"{}\"/>\n", s, path);
    if (drawn > 30) continue;
    for (const auto& [at, value] : lines[s].points)
      if (std::isfinite(value))
        svg +=
            cat("<circle class=\"dot-{}\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\"><title>{}: {:.4g} at "
                "{:.4g}</title></circle>\n",
                s, px(at), py(std::clamp(value, y.low, y.high)), escape_html(lines[s].name), value, at);
  }
  svg += "</svg>";

  std::string legend;
  for (size_t s = 0; s < lines.size(); ++s)
    legend += cat("<span class=\"key\"><i class=\"swatch-{}\"></i>{} <b>{}</b></span>", s, escape_html(lines[s].name),
                  last_text(lines[s]));
  return cat("<figure><figcaption><h3>{}</h3><p>{}</p><div class=\"legend\">{}</div></figcaption>{}</figure>\n",
             escape_html(chart.title), escape_html(chart.note), legend, svg);
}

}  // namespace csml
