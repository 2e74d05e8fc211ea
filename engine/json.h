// JSON out of files that anybody may have written, and back on one line.
#pragma once

#include <concepts>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace csml {

/// The value that `text` is as a whole; is_discarded() for what is no JSON (or no UTF-8) and for what is nested deeper
/// than 64: copying and printing a document recurse. Never throws.
inline nlohmann::json parse_json(std::string_view text) {
  constexpr int kMostDepth = 64;
  bool deep = false;
  const auto shallow = [&](int depth, nlohmann::json::parse_event_t, nlohmann::json&) {
    deep |= depth > kMostDepth;
    return !deep;
  };
  nlohmann::json value = nlohmann::json::parse(text.begin(), text.end(), shallow, false);
  return deep ? nlohmann::json(nlohmann::json::value_t::discarded) : value;
}

/// A whole number of T's range. Throws nlohmann::json::type_error for anything else; get<T>() would also take true and
/// 0.5, and is undefined for 1e86.
template <std::integral T>
T whole_number(const nlohmann::json& value) {
  if (value.is_number_unsigned()) {
    const auto number = value.get<uint64_t>();
    if (std::in_range<T>(number)) return static_cast<T>(number);
  } else if (value.is_number_integer()) {
    const auto number = value.get<int64_t>();
    if (std::in_range<T>(number)) return static_cast<T>(number);
  }
  throw nlohmann::json::type_error::create(302, "not a whole number of its range", &value);
}

/// The "step" of a line of metrics.jsonl; nothing for what is no object with a whole number of that range.
inline std::optional<int64_t> step_of_line(const nlohmann::json& line) {
  try {
    if (line.is_object()) return whole_number<int64_t>(line.at("step"));
  } catch (const nlohmann::json::exception&) {  // another kind of line
  }
  return std::nullopt;
}

/// JSON as text on one line; bytes that are not UTF-8 (of a file's name) are replaced.
inline std::string json_line(const nlohmann::json& json) {
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace csml
