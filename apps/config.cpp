#include "apps/config.h"

// toml++ 3.3 asserts, or with NDEBUG lets the compiler assume, what a text such as "[&" breaks, just before it looks
// for that itself and says so. So it shall do neither.
#pragma push_macro("NDEBUG")
#undef NDEBUG
#define TOML_ASSERT(condition) static_assert(true)
#include <toml++/toml.h>
#pragma pop_macro("NDEBUG")

#include <algorithm>
#include <numeric>
#include <optional>
#include <set>

#include "apps/presets.h"
#include "engine/file.h"
#include "kernels/check.h"

extern char** environ;

namespace csml {
namespace {

using nlohmann::json;

constexpr size_t kMostConfigBytes = 1 << 20;

std::string section_of(const std::string& key) { return key.substr(0, key.find('.')); }
std::string name_of_key(const std::string& key) { return key.substr(key.find('.') + 1); }

std::vector<std::string> key_names() {
  Config config;
  std::vector<std::string> names;
  for (const ConfigKey& key : config_keys(config)) names.push_back(key.name);
  return names;
}

std::string environment_name(const std::string& key) {
  std::string name = "CSML_";
  for (char c : key) name += c == '.' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return name;
}

size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i + 1;
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t replaced = diagonal + (a[i] != b[j]);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row.back();
}

/// The nearest key: the same name in another section first ("epochs", "train.lr"), else by edit distance.
std::string nearest_key(const std::string& key) {
  const std::vector<std::string> known = key_names();
  const std::string name = key.find('.') == std::string::npos ? key : name_of_key(key);
  std::vector<std::string> names;
  for (const std::string& candidate : known) {
    if (name_of_key(candidate) == name) return candidate;
    names.push_back(name_of_key(candidate));
  }
  if (std::string near = nearest_word(key, known); !near.empty()) return near;
  const std::string near = nearest_word(name, names);
  return near.empty() ? "" : known[static_cast<size_t>(std::find(names.begin(), names.end(), near) - names.begin())];
}

/// A TOML value as JSON; nothing for what no key can hold (dates, tables).
std::optional<json> to_json_value(const toml::node& node) {
  if (const auto* x = node.as_boolean()) return json(x->get());
  if (const auto* x = node.as_integer()) return json(x->get());
  if (const auto* x = node.as_floating_point()) return json(x->get());
  if (const auto* x = node.as_string()) return json(x->get());
  const auto* list = node.as_array();
  if (!list) return std::nullopt;
  json all = json::array();
  for (const toml::node& item : *list) {
    std::optional<json> value = item.is_array() ? std::nullopt : to_json_value(item);
    if (!value) return std::nullopt;
    all.push_back(*value);
  }
  return all;
}

toml::table parse_toml(const std::string& text, const std::string& place) {
  try {
    return toml::parse(text, place);
  } catch (const toml::parse_error& e) {
    throw UsageError(
        cat("{}:{}:{}: {}", place, e.source().begin.line, e.source().begin.column, std::string(e.description())));
  }
}

/// One value given as text, read as the key's type wants it. What does not fit stays text and is refused by its type.
struct FromText {
  const std::string& key;
  const std::string& text;

  json literal() const {
    try {
      const toml::table table = toml::parse("x = " + text);
      if (table.size() == 1)
        if (std::optional<json> value = to_json_value(*table.get("x"))) return *value;
    } catch (const toml::parse_error&) {  // plain text: not a literal
    }
    return text;
  }
  json operator()(std::string*) const {
    const bool quoted =
        text.size() >= 2 && (text.front() == '"' || text.front() == '\'') && text.back() == text.front();
    return quoted ? literal() : json(text);
  }
  json operator()(bool*) const {
    static const std::map<std::string, bool> words{{"true", true},   {"1", true},  {"on", true},   {"yes", true},
                                                   {"false", false}, {"0", false}, {"off", false}, {"no", false}};
    const auto found = words.find(text);
    return found == words.end() ? json(text) : json(found->second);
  }
  json operator()(uint64_t*) const {  // TOML stops at 2^63
    const bool digits = !text.empty() && text.size() <= 20 && text.find_first_not_of("0123456789") == std::string::npos;
    try {
      return digits ? json(static_cast<uint64_t>(std::stoull(text))) : json(text);
    } catch (const std::out_of_range&) { return text; }
  }
  json list(bool words) const {
    if (text.starts_with('[')) return literal();
    json all = json::array();
    for (size_t start = 0; start <= text.size() && !text.empty();) {
      const size_t end = std::min(text.find(',', start), text.size());
      const std::string item = text.substr(start, end - start);
      all.push_back(words ? json(item) : FromText{key, item}.literal());
      start = end + 1;
    }
    return all;
  }
  json operator()(std::vector<std::string>*) const { return list(true); }
  json operator()(std::vector<double>*) const { return list(false); }
  json operator()(std::array<float, 4>*) const { return list(false); }
  template <class T>
  json operator()(T*) const {
    return literal();
  }
};

std::string toml_value(const json& value) {
  if (!value.is_array()) return value.dump();
  std::string list;
  for (const json& item : value) list += (list.empty() ? "" : ", ") + item.dump();
  return "[" + list + "]";
}

/// The text after "# <field>: " in a preset's head.
std::string head_field(const std::string& text, const std::string& field) {
  const std::string mark = "# " + field + ": ";
  const size_t start = text.find(mark);
  if (start == std::string::npos) return "";
  return text.substr(start + mark.size(), text.find('\n', start) - start - mark.size());
}

}  // namespace

std::string nearest_word(const std::string& word, const std::vector<std::string>& known) {
  std::string best;
  size_t least = std::max<size_t>(2, word.size() / 3) + 1;
  for (const std::string& candidate : known) {
    const size_t distance = edit_distance(word, candidate);
    if (distance < least) least = distance, best = candidate;
  }
  return best;
}

ConfigBuilder::ConfigBuilder() : values_(to_json(Config{})) {
  for (const std::string& key : key_names()) origin_[key] = "default";
}

void ConfigBuilder::unknown_key(const std::string& key, const std::string& place) const {
  const std::string near = nearest_key(key);
  throw UsageError(cat("{}: unknown key {}{}", place, key,
                       near.empty() ? "; `csml pretrain --dry-run` lists all keys" : cat("; did you mean {}?", near)));
}

void ConfigBuilder::put(const std::string& key, const json& value, const std::string& place,
                        const std::string& origin) {
  if (!origin_.contains(key)) unknown_key(key, place);
  try {
    value.dump();  // as every record of the configuration will be written
  } catch (const json::type_error&) { throw UsageError(cat("{}: the value of {} is not UTF-8 text", place, key)); }
  try {
    config_from_json({{section_of(key), {{name_of_key(key), value}}}});
  } catch (const UsageError& e) { throw UsageError(cat("{}: {}", place, e.what())); }
  values_[section_of(key)][name_of_key(key)] = value;
  origin_[key] = origin;
}

void ConfigBuilder::add_preset(const std::string& name) {
  std::vector<std::string> names;
  for (const Preset& preset : presets()) {
    if (preset.name == name) return add_toml(preset.text, "preset " + name, "preset " + name);
    names.push_back(preset.name);
  }
  const std::string near = nearest_word(name, names);
  throw UsageError(cat("unknown preset {}{}; `csml pretrain --preset help` lists them", name,
                       near.empty() ? "" : cat("; did you mean {}?", near)));
}

void ConfigBuilder::add_file(const std::filesystem::path& path) {
  add_toml(read_text_file(path, kMostConfigBytes), path.string());
}

void ConfigBuilder::add_toml(const std::string& text, const std::string& place, const std::string& origin) {
  const toml::table table = parse_toml(text, place);
  const auto at = [&](const toml::source_region& source) {
    return cat("{}:{}:{}", place, source.begin.line, source.begin.column);
  };
  std::set<std::string> sections;
  for (const std::string& key : key_names()) sections.insert(section_of(key));
  for (const auto& [section_key, section] : table) {
    const std::string section_name(section_key.str());
    if (!section.is_table()) {
      const std::string near = nearest_key(section_name);
      throw UsageError(cat("{}: {} stands outside any section{}", at(section_key.source()), section_name,
                           near.empty() ? "" : cat("; did you mean {} in [{}]?", name_of_key(near), section_of(near))));
    }
    if (!sections.contains(section_name)) {
      const std::string near = nearest_word(section_name, {sections.begin(), sections.end()});
      throw UsageError(
          cat("{}: unknown section [{}]; {}", at(section.source()), section_name,
              near.empty() ? cat("known are {}", fmt::join(sections, ", ")) : cat("did you mean [{}]?", near)));
    }
    for (const auto& [name, node] : *section.as_table()) {
      const std::string key = section_name + "." + std::string(name.str());
      if (!origin_.contains(key)) unknown_key(key, at(name.source()));
      const std::optional<json> value = to_json_value(node);
      if (!value) throw UsageError(cat("{}: {} cannot hold a value of this type", at(node.source()), key));
      put(key, *value, at(node.source()), origin.empty() ? cat("{}:{}", place, name.source().begin.line) : origin);
    }
  }
}

void ConfigBuilder::add_environment() {
  std::map<std::string, std::string> keys;
  std::set<std::string> prefixes;
  std::vector<std::string> names;
  for (const std::string& key : key_names()) {
    keys[environment_name(key)] = key;
    names.push_back(environment_name(key));
    prefixes.insert(environment_name(section_of(key)) + "_");
  }
  for (char** entry = environ; *entry; ++entry) {
    const std::string line = *entry;
    const size_t equals = line.find('=');
    if (!line.starts_with("CSML_") || equals == std::string::npos) continue;
    const std::string name = line.substr(0, equals);
    if (const auto found = keys.find(name); found != keys.end()) {
      set(found->second, line.substr(equals + 1), "environment " + name);
    } else if (std::any_of(prefixes.begin(), prefixes.end(), [&](const auto& p) { return name.starts_with(p); })) {
      const std::string near = nearest_word(name, names);
      throw UsageError(
          cat("environment: unknown variable {}{}", name, near.empty() ? "" : cat("; did you mean {}?", near)));
    }
  }
}

void ConfigBuilder::set(const std::string& key, const std::string& text, const std::string& origin) {
  Config config;
  for (const ConfigKey& known : config_keys(config)) {
    if (known.name == key) return put(key, std::visit(FromText{key, text}, known.value), origin, origin);
  }
  unknown_key(key, origin);
}

void ConfigBuilder::set_assignment(const std::string& assignment) {
  const size_t equals = assignment.find('=');
  if (equals == std::string::npos || equals == 0)
    throw UsageError(cat("--set {}: expects section.key=value, for example --set train.seed=1", assignment));
  set(assignment.substr(0, equals), assignment.substr(equals + 1), "--set");
}

ResolvedConfig ConfigBuilder::build() const {
  ResolvedConfig resolved{config_from_json(values_), origin_};
  const json before = to_json(resolved.config);
  resolve(resolved.config);
  const json after = to_json(resolved.config);
  for (auto& [key, origin] : resolved.origin) {
    if (before[section_of(key)][name_of_key(key)] != after[section_of(key)][name_of_key(key)])
      origin = "derived (" + origin + ")";
  }
  return resolved;
}

std::string config_toml(const ResolvedConfig& resolved) {
  const json values = to_json(resolved.config);
  std::string text = "# Resolved configuration; the origin of each value stands behind it.\n", section;
  for (const std::string& key : key_names()) {
    if (section_of(key) != section) {
      section = section_of(key);
      text += cat("\n[{}]\n", section);
    }
    const auto origin = resolved.origin.find(key);
    std::string from = origin == resolved.origin.end() ? "" : origin->second;
    std::replace_if(
        from.begin(), from.end(), [](unsigned char c) { return c < ' ' || c == 127; }, ' ');
    const std::string line = cat("{} = {}", name_of_key(key), toml_value(values[section][name_of_key(key)]));
    text += from.empty() ? line + "\n" : cat("{:<40}  # {}\n", line, from);
  }
  return text;
}

std::string preset_list() {
  std::string text;
  for (const Preset& preset : presets()) {
    text += cat("{}\n    source  {}\n    cost    {}\n", preset.name, head_field(preset.text, "source"),
                head_field(preset.text, "cost"));
  }
  return text +
         "\nEvery preset runs CsMl unless its name says otherwise; --method moco switches such a one to MoCo v2.\n";
}

}  // namespace csml
