#include "apps/keys.h"

#include <algorithm>

#include "csml/method/resolve.h"
#include "engine/nearest.h"
#include "kernels/check.h"

namespace csml {

namespace {

struct Section {
  const char *name, *text;
};
constexpr Section kSections[] = {
    {"data", "The images, and how they are loaded."},
    {"augment", "The recipe of a view. docs/method.md gives the source of each default."},
    {"model", "The network: a ResNet and its heads."},
    {"method", "CsMl and its bases; docs/method.md explains each choice."},
    {"optimizer", "How gradients change the weights."},
    {"schedule", "The learning rate over the run."},
    {"train", "Length, batch, precision, checkpoints, and when a run stops."},
    {"eval", "The online k-NN, and how images are prepared for features."},
    {"comm", "Runs of several processes."},
};

/// What a row of the reference shows.
struct Row {
  std::string key, section, fallback, values, unit, help, flag;
};

struct TypeName {
  std::string operator()(const bool*) const { return "true or false"; }
  std::string operator()(const float*) const { return "number"; }
  std::string operator()(const double*) const { return "number"; }
  std::string operator()(const std::string*) const { return "text"; }
  std::string operator()(const std::vector<double>*) const { return "list of numbers"; }
  std::string operator()(const std::vector<std::string>*) const { return "list"; }
  std::string operator()(const std::array<float, 4>*) const { return "list of 1 to 4 numbers"; }
  template <class T>
  std::string operator()(const T*) const {
    return "whole number";
  }
};

std::string values_text(const ConfigKey& key) {
  const std::string type = std::visit(TypeName{}, key.value), allowed = allowed_text(key.allowed);
  if (allowed.empty()) return type;
  if (type == "text") return allowed;
  return cat("{}{} {}", type, type == "list" ? " of" : ":", allowed);
}

std::vector<Row> rows() {
  Config config;
  const nlohmann::json defaults = to_json(config);
  std::vector<Row> all;
  for (const ConfigKey& key : config_keys_of_methods(config)) {
    Row row{key.name, key.section(), "", values_text(key), key.unit, key.help, ""};
    const nlohmann::json& value = defaults[row.section][key.name.substr(row.section.size() + 1)];
    row.fallback = value.is_string() && value != "" ? value.get<std::string>() : value.dump();
    for (const KeyFlag& flag : key_flags())
      if (flag.key == key.name && row.flag.empty()) row.flag = flag.flag;
    all.push_back(row);
  }
  return all;
}

std::vector<Row> chosen(const std::string& which) {
  std::vector<Row> some;
  std::vector<std::string> names;
  for (const Row& row : rows()) {
    names.push_back(row.key);
    if (which.empty() || which == row.key || which == row.section) some.push_back(row);
  }
  for (const Section& section : kSections) names.emplace_back(section.name);
  if (some.empty()) throw UsageError(cat("--help-keys {}: no such key or section{}", which, suggestion(which, names)));
  return some;
}

/// "Passes over the data; flag --epochs"
std::string meaning(const Row& row, const std::string& quote) {
  return row.flag.empty() ? row.help : cat("{}; flag {}{}{}", row.help, quote, row.flag, quote);
}

/// `|` ends a cell, `…` code.
std::string cell(const std::string& text) {
  std::string safe;
  for (const char c : text) safe += c == '|' ? std::string("\\|") : std::string(1, c);
  return safe.empty() ? "–" : safe;
}

}  // namespace

const std::vector<KeyFlag>& key_flags() {
  static const std::vector<KeyFlag> all{
      {"--data", "data.train", "SPEC"},        {"--test-data", "data.test", "SPEC"},
      {"--probe", "data.test", "SPEC"},        {"--method", "method.name", "NAME"},
      {"--device", "train.device", "NAME"},    {"--precision", "train.precision", "NAME"},
      {"--epochs", "train.epochs", "N"},       {"--batch-size", "train.batch_size", "N"},
      {"--seed", "train.seed", "N"},           {"--threads", "train.threads", "N"},
      {"--max-hours", "train.max_hours", "H"}, {"--workers", "data.workers", "N"},
  };
  return all;
}

std::string key_help(const std::string& key) {
  Config config;
  for (const ConfigKey& row : config_keys_of_methods(config))
    if (row.name == key) {
      const std::string allowed = allowed_text(row.allowed);
      return allowed.empty() ? row.help : cat("{}. Values: {}", row.help, allowed);
    }
  return "";
}

std::string keys_markdown() {
  std::string text =
      "# Configuration keys\n\n"
      "This page is made by `csml pretrain --help-keys markdown` from the table in\n"
      "[csml/config/table.cpp](../csml/config/table.cpp). Change the table, not the page.\n\n"
      "A key is set in TOML (`[train]`, `epochs = 100`), by `--set train.epochs=100`, or by the environment variable\n"
      "`CSML_TRAIN_EPOCHS=100`. Some have a flag of their own. The order of precedence is default < preset < file <\n"
      "environment < flag. `csml pretrain --dry-run` shows the value of every key in a run and where it came from.\n";
  std::string section;
  for (const Row& row : rows()) {
    if (row.section != section) {
      section = row.section;
      const auto* described =
          std::find_if(std::begin(kSections), std::end(kSections), [&](const Section& s) { return s.name == section; });
      CHECK(described != std::end(kSections), "section {} is not described in apps/keys.cpp", section);
      text += cat("\n## {}\n\n{}\n\n| key | default | values | unit | meaning |\n| --- | --- | --- | --- | --- |\n",
                  section, described->text);
    }
    text += cat("| `{}` | `{}` | {} | {} | {} |\n", row.key, row.fallback, cell(row.values), cell(row.unit),
                cell(meaning(row, "`")));
  }
  return text;
}

std::string keys_text(const std::string& which) {
  std::string text;
  for (const Row& row : chosen(which)) {
    const std::string value = row.unit.empty() ? row.fallback : cat("{} {}", row.fallback, row.unit);
    text += cat("{:<32} {}\n    {}\n    {}\n", row.key, value, meaning(row, ""), row.values);
  }
  return text;
}

nlohmann::json keys_json(const std::string& which) {
  nlohmann::json all = nlohmann::json::array();
  for (const Row& row : chosen(which))
    all.push_back(
        {{"key", row.key}, {"default", row.fallback}, {"values", row.values}, {"unit", row.unit}, {"help", row.help}});
  return all;
}

}  // namespace csml
