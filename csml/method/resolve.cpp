#include "csml/method/resolve.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "csml/method/levels.h"
#include "csml/method/plan.h"
#include "kernels/check.h"

namespace csml {

namespace {

template <class... Args>
void require(bool condition, const char* key, fmt::format_string<Args...> format, Args&&... args) {
  if (!condition) throw UsageError(cat("{} {}", key, cat(format, std::forward<Args>(args)...)));
}

/// For a rule that the table of keys says and does not check.
template <class T>
void require_rule(bool condition, const char* name, const T& value) {
  if (condition) return;
  Config config;
  for (const ConfigKey& key : config_keys(config))
    if (key.name == name) throw UsageError(cat("{} must be {}, got {}", name, allowed_text(key.allowed), value));
}

void require_pair(const char* key, const std::vector<double>& pair) {
  require_rule(pair.size() == 2 && pair[0] >= 0 && pair[1] >= 0 && pair[0] + pair[1] > 0, key,
               cat("[{}]", fmt::join(pair, ", ")));
}

/// A list that names at least one thing, and each once.
void require_set(const char* key, const std::vector<std::string>& list) {
  require(!list.empty(), key, "must name at least one");
  for (const std::string& word : list)
    require(std::count(list.begin(), list.end(), word) == 1, key, "names \"{}\" twice", word);
}

void check_levels(const Config& c) {
  const MethodConfig& m = c.method;
  require_set("method.levels", m.levels);
  require(m.level_weights.empty() || m.level_weights.size() == m.levels.size(), "method.level_weights",
          "must have as many entries as method.levels ({}), or none, got {}", m.levels.size(), m.level_weights.size());
  require(m.alignment == "global" || base_of(m).momentum_encoder, "method.alignment",
          "\"{}\" needs a base with a momentum encoder, {} has none; use \"global\"", m.alignment, base_of(m).name);
  levels_of(c);
}

void check_method(const Config& c) {
  const MethodConfig& m = c.method;
  require(m.bn_group_size == 0 || c.train.batch_size % m.bn_group_size == 0, "train.batch_size",
          "({}) must be a multiple of method.bn_group_size ({}); use --set method.bn_group_size=0 for one group",
          c.train.batch_size, m.bn_group_size);
  require_rule(m.shuffle_span == 0 || (m.shuffle_span > 0 && c.train.batch_size % m.shuffle_span == 0),
               "method.shuffle_span", m.shuffle_span);
  require_pair("method.weights", m.weights);
  require_pair("method.warmup_weights", m.warmup_weights);
  require_set("method.terms", m.terms);
  const int parts = c.train.accumulate;
  const Base::Negatives negatives = base_of(m).negatives;
  require(parts == 1 || negatives == Base::Negatives::queue || negatives == Base::Negatives::none, "train.accumulate",
          "must be 1 for {}, whose negatives are the whole batch (share it out over processes instead), got {}",
          base_of(m).name, parts);
  require(
      !m.partner_negatives || (uses_partner(m) && base_of(m).in_batch()), "method.partner_negatives",
      "needs csml, with a partner in its terms or weights, over a base whose negatives are the batch (simclr, mocov3)");
  require(m.key_gradient || !base_of(m).momentum_encoder, "method.key_gradient",
          "= false needs a base without momentum encoder (simclr); the keys of {} never pass one", base_of(m).name);
  check_levels(c);
  require_rule(m.crop_weights.size() == 2 && m.crop_weights[0] >= 0 && m.crop_weights[1] >= 0, "method.crop_weights",
               cat("[{}]", fmt::join(m.crop_weights, ", ")));
  crop_recipes(c);
}

void check_training(const Config& c) {
  const TrainConfig& t = c.train;
  require_rule(t.seed <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max()), "train.seed", t.seed);
  const bool numbered = t.device.starts_with("cuda:") && t.device.size() > 5 && t.device.size() < 10 &&
                        std::all_of(t.device.begin() + 5, t.device.end(), [](char x) { return x >= '0' && x <= '9'; });
  require(t.device != "cuda:N", "train.device", "\"cuda:N\": write the number of the device, for example cuda:0");
  require_rule(numbered || t.device == "auto" || t.device == "cpu" || t.device == "cuda", "train.device", t.device);
  const LossScaleOptions& l = t.loss_scale;
  const std::pair<const char*, float> scales[] = {
      {"train.loss_scale", l.initial}, {"train.loss_scale_min", l.smallest}, {"train.loss_scale_max", l.largest}};
  for (const auto& [key, scale] : scales) {
    int exponent = 0;
    require_rule(std::frexp(scale, &exponent) == 0.5f, key, scale);
  }
  require(l.smallest <= l.initial && l.initial <= l.largest, "train.loss_scale",
          "must be in train.loss_scale_min … train.loss_scale_max ({} … {}), got {}", l.smallest, l.largest, l.initial);
  const ScheduleOptions& s = c.schedule;
  require(s.warmup_epochs >= 0 && (s.warmup_epochs == 0 || s.warmup_epochs < t.epochs), "schedule.warmup_epochs",
          "must be at least 0 and below train.epochs ({}), got {}", t.epochs, s.warmup_epochs);
}

}  // namespace

std::vector<ConfigKey> config_keys_of_methods(Config& c) {
  std::vector<std::string> names;
  for (const Base& base : bases()) names.push_back(base.name);
  std::vector<ConfigKey> keys = config_keys(c);
  for (ConfigKey& key : keys)
    if (key.name == "method.base" || key.name == "method.name") key.allowed.words = names;
  for (ConfigKey& key : keys)
    if (key.name == "method.name") key.allowed.words.insert(key.allowed.words.begin(), "csml");
  return keys;
}

void resolve(Config& c) {
  check_values(config_keys_of_methods(c));
  check_augment(c.augment);
  require_rule(c.eval.resize == 0 || c.eval.resize >= c.eval.size, "eval.resize", c.eval.resize);
  check_training(c);
  check_method(c);

  c.schedule.base_lr = c.lr_per_256 * c.train.batch_size / 256;
  c.schedule.epochs = c.train.epochs;
  const Base& base = base_of(c.method);
  if (c.method.directions == 0) c.method.directions = base.directions;
  if (c.model.head_bn == "auto") c.model.head_bn = base.head_bn;
  // The released code's 11 of 200 epochs, as a share.
  if (c.method.warmup_epochs < 0)
    c.method.warmup_epochs = std::max(1, static_cast<int>(std::lround(0.055 * c.train.epochs)));
}

}  // namespace csml
