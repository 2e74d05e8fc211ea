// Reads a Config from where users say it: default < preset < file < CSML_* environment < flags, and writes it down with
// the origin of each value.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "csml/config/config.h"

namespace csml {

struct ResolvedConfig {
  Config config;
  std::map<std::string, std::string> origin;  // "section.key" -> "default", "preset cifar10-r18", "run.toml:3", …
};

/// Collects values in the order of the calls; a later one wins. All throw UsageError that names the key and the place;
/// an unknown key is answered with the nearest one.
class ConfigBuilder {
 public:
  ConfigBuilder();

  void add_preset(const std::string& name);
  void add_file(const std::filesystem::path& path);
  /// TOML text; `place` stands for its file name in messages, `origin` (place:line when empty) in the record.
  void add_toml(const std::string& text, const std::string& place, const std::string& origin = "");
  /// CSML_SECTION_KEY for every key, such as CSML_TRAIN_BATCH_SIZE. Other CSML_ variables are left alone unless they
  /// begin with a section's name.
  void add_environment();
  /// One value as text: 256, true, a word, and lists as a,b or TOML's ["a", "b"].
  void set(const std::string& key, const std::string& text, const std::string& origin);
  /// "section.key=value" of --set.
  void set_assignment(const std::string& assignment);

  /// The configuration, resolved (csml/config/config.h).
  ResolvedConfig build() const;

 private:
  void put(const std::string& key, const nlohmann::json& value, const std::string& place, const std::string& origin);
  [[noreturn]] void unknown_key(const std::string& key, const std::string& place) const;

  nlohmann::json values_;
  std::map<std::string, std::string> origin_;
};

/// As TOML, one key per line with its origin as a comment; add_file() reads it back to the same values.
std::string config_toml(const ResolvedConfig& resolved);

/// Every preset with its source and its expected cost, for people.
std::string preset_list();

}  // namespace csml
