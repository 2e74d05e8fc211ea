// Pieces of a self-contained page: escaped text, line charts as inline SVG, pictures as PNG data URIs.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "data/image.h"

namespace csml {

/// Text for an HTML or SVG document.
std::string escape_html(const std::string& text);

/// One line of a chart; points in ascending x. NaN in y is a gap.
struct Series {
  std::string name;
  std::vector<std::pair<double, double>> points;
};

/// A line chart. Colours come from the page's CSS variables --line-0 … --line-3, --text, --muted and --grid.
struct Chart {
  std::string title, note;  // note: one line under the title
  std::string x_label = "epoch";
  std::vector<Series> series;                             // at most four
  std::optional<std::pair<double, std::string>> level{};  // a dashed horizontal line and what it is
  bool from_zero = false;
  std::optional<double> top{};  // fixes the upper end of the y axis
};
/// A <figure>; empty text when there is nothing to draw.
std::string chart_html(const Chart& chart);

/// "data:image/png;base64,…" of u8 pixels with 1 or 3 channels (apps/picture.cpp).
std::string png_data_uri(const ImageView& image);

}  // namespace csml
