// The table of configuration keys: for each its name, its place in a Config, the values it may have, its unit and its
// meaning. TOML, environment, --set, JSON, the checks of single values and docs/keys.md are made from it.
#pragma once

#include <limits>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "csml/config/config.h"

namespace csml {

/// The values a key may have by itself. A list's bounds and words hold for each entry. Without any of these, every
/// value of the key's type is allowed.
struct Allowed {
  double least = -std::numeric_limits<double>::infinity(), most = std::numeric_limits<double>::infinity();
  bool above = false, below = false;             // `least`, `most` themselves are excluded
  std::optional<double> special = std::nullopt;  // allowed beside the range, or the range's least value
  std::string meaning = {};                      // of `special`
  std::vector<double> numbers = {};              // one of these
  std::vector<std::string> words = {};           // one of these
  std::string rule = {};                         // said here, checked where other keys are known (resolve.cpp)
  Allowed or_special(double value, std::string means) const;  // a copy with `special`
};

struct ConfigKey {
  using Value = std::variant<bool*, int*, int64_t*, uint64_t*, float*, double*, std::string*, std::vector<double>*,
                             std::vector<std::string>*, std::array<float, 4>*>;
  std::string name;  // "section.key"
  Value value;       // where its value lives in a Config
  Allowed allowed;
  std::string unit;  // empty: none
  std::string help;  // one line

  std::string section() const { return name.substr(0, name.find('.')); }
};

/// The table. The words of method.name and method.base are not in it: the methods have their own table, which
/// config_keys_of_methods (csml/method/resolve.h) adds.
std::vector<ConfigKey> config_keys(Config& config);

/// What Allowed says, as the rest of "must be …": "at least 1", "0 (all) or more", "in [0, 1)", "sgd or lars or adamw".
/// Empty where everything is allowed.
std::string allowed_text(const Allowed& allowed);

/// Throws UsageError, "KEY must be …, got …", for the first key with a value that its row does not allow.
void check_values(const std::vector<ConfigKey>& keys);

}  // namespace csml
