// The reference of all configuration keys, made from their table (csml/config/table.cpp): docs/keys.md and
// `csml pretrain --help-keys`.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace csml {

/// A flag of `csml pretrain` that sets one key.
struct KeyFlag {
  std::string flag, key, type;
};
const std::vector<KeyFlag>& key_flags();

/// What the table says of a key, for the help of its flag: meaning and values.
std::string key_help(const std::string& key);

/// docs/keys.md.
std::string keys_markdown();
/// For a terminal: the keys of a section, or one key; all where `which` is empty. Throws UsageError where there are
/// none, with the nearest name.
std::string keys_text(const std::string& which);
/// [{"key", "default", "values", "unit", "help"}], chosen as for keys_text.
nlohmann::json keys_json(const std::string& which);

}  // namespace csml
