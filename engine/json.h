// JSON out of files that anybody may have written, and back on one line.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

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

/// JSON as text on one line; bytes that are not UTF-8 (of a file's name) are replaced.
inline std::string json_line(const nlohmann::json& json) {
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace csml
