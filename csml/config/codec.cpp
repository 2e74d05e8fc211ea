// A configuration as JSON, and back.
#include <cmath>
#include <limits>
#include <map>
#include <utility>

#include "csml/config/table.h"
#include "engine/json.h"
#include "engine/text.h"
#include "kernels/check.h"

namespace csml {

namespace {

using nlohmann::json;

/// A float as the shortest decimal that reads back as the same float: 0.2, not 0.20000000298.
double decimal(float value) { return std::stod(fmt::format("{}", value)); }

/// A value inside a message.
std::string shown(const json& value) { return printable(json_line(value), 200); }

template <class T>
void put_number(const std::string& key, const json& value, T& target) {
  if constexpr (std::is_floating_point_v<T>) {
    if (!value.is_number()) throw UsageError(cat("{} must be a number, got {}", key, shown(value)));
    target = value.get<T>();
    if (!std::isfinite(target)) throw UsageError(cat("{} must be finite, got {}", key, shown(value)));
  } else {
    // JSON keeps signed and unsigned apart: each is compared in its own type.
    constexpr T least = std::numeric_limits<T>::min(), most = std::numeric_limits<T>::max();
    const bool fits = value.is_number_unsigned()
                          ? value.get<uint64_t>() <= static_cast<uint64_t>(most)
                          : value.is_number_integer() && std::cmp_greater_equal(value.get<int64_t>(), least) &&
                                std::cmp_less_equal(value.get<int64_t>(), most);
    if (!fits) {
      throw UsageError(cat("{} must be a whole number{}{}, got {}", key, std::is_signed_v<T> ? "" : " of at least 0",
                           sizeof(T) < 8 ? " below 2^31" : "", shown(value)));
    }
    target = value.get<T>();
  }
}

template <class T>
void put_list(const std::string& key, const json& value, std::vector<T>& target) {
  constexpr bool text = std::is_same_v<T, std::string>;
  if (!value.is_array()) {
    throw UsageError(cat("{} must be a list of {}, got {}", key, text ? "texts" : "numbers", shown(value)));
  }
  std::vector<T> list;
  for (const json& item : value) {
    if (text ? !item.is_string() : !item.is_number())
      throw UsageError(cat("{} must be a list of {}, got {}", key, text ? "texts" : "numbers", shown(value)));
    list.push_back(item.get<T>());
  }
  target = std::move(list);
}

struct Put {
  const std::string& key;
  const json& value;

  void operator()(bool* target) const {
    if (!value.is_boolean()) throw UsageError(cat("{} must be true or false, got {}", key, shown(value)));
    *target = value.get<bool>();
  }
  void operator()(std::string* target) const {
    if (!value.is_string()) throw UsageError(cat("{} must be text, got {}", key, shown(value)));
    *target = value.get<std::string>();
  }
  template <class T>
  void operator()(std::vector<T>* target) const {
    put_list(key, value, *target);
  }
  void operator()(std::array<float, 4>* target) const {
    std::vector<double> list;
    put_list(key, value, list);
    if (list.empty() || list.size() > target->size())
      throw UsageError(cat("{} must be a list of 1 to 4 numbers, got {}", key, shown(value)));
    for (size_t i = 0; i < list.size(); ++i) (*target)[i] = static_cast<float>(list[i]);
  }
  template <class T>
  void operator()(T* target) const {
    put_number(key, value, *target);
  }
};

struct Get {
  int channels;

  json operator()(float* value) const { return decimal(*value); }
  json operator()(std::array<float, 4>* value) const {
    json list = json::array();
    for (int i = 0; i < channels; ++i) list.push_back(decimal((*value)[static_cast<size_t>(i)]));
    return list;
  }
  template <class T>
  json operator()(T* value) const {
    return *value;
  }
};

}  // namespace

json to_json(const Config& config) {
  Config copy = config;
  json all = json::object();
  for (const ConfigKey& key : config_keys(copy)) {
    const size_t dot = key.name.find('.');
    all[key.name.substr(0, dot)][key.name.substr(dot + 1)] = std::visit(Get{copy.augment.channels}, key.value);
  }
  return all;
}

Config config_from_json(const json& all) {
  Config config;
  std::map<std::string, ConfigKey::Value> values;
  for (const ConfigKey& key : config_keys(config)) values.emplace(key.name, key.value);
  if (!all.is_object()) throw UsageError(cat("a configuration must be an object of sections, got {}", shown(all)));
  for (const auto& [section, keys] : all.items()) {
    if (!keys.is_object())
      throw UsageError(cat("[{}] must be a section of keys, got {}", printable(section, 200), shown(keys)));
    for (const auto& [name, value] : keys.items()) {
      const std::string key = section + "." + name;
      const auto found = values.find(key);
      if (found == values.end()) throw UsageError(cat("unknown configuration key {}", printable(key, 200)));
      std::visit(Put{key, value}, found->second);
    }
  }
  return config;
}

}  // namespace csml
