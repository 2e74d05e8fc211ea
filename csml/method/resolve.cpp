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

void require_one_of(const char* key, const std::string& value, const std::vector<std::string>& known) {
  if (std::find(known.begin(), known.end(), value) != known.end()) return;
  throw UsageError(cat("{} must be {}, got \"{}\"", key, fmt::join(known, " or "), value));
}

void require_pair(const char* key, const std::vector<double>& pair) {
  require(pair.size() == 2 && pair[0] >= 0 && pair[1] >= 0 && pair[0] + pair[1] > 0, key,
          "must be two weights of at least 0 (own key, partner's key) that are not both 0, got [{}]",
          fmt::join(pair, ", "));
}

void check_levels(const Config& c) {
  const MethodConfig& m = c.method;
  require(!m.levels.empty(), "method.levels", "must name at least one of res2, res3, res4, res5");
  for (const std::string& level : m.levels) {
    require_one_of("method.levels", level, {"res2", "res3", "res4", "res5"});
    require(std::count(m.levels.begin(), m.levels.end(), level) == 1, "method.levels", "names \"{}\" twice", level);
  }
  require(m.level_weights.empty() || m.level_weights.size() == m.levels.size(), "method.level_weights",
          "must have as many entries as method.levels ({}), or none, got {}", m.levels.size(), m.level_weights.size());
  for (const double w : m.level_weights) require(w >= 0, "method.level_weights", "must not be negative, got {}", w);
  require_one_of("method.alignment", m.alignment, {"global", "patch", "patch-lite"});
  require(m.patch_window >= 0, "method.patch_window", "must be 0 (8/14 of the map) or more, got {}", m.patch_window);
  require(m.patch_stride >= 0, "method.patch_stride", "must be 0 (3/14 of the map) or more, got {}", m.patch_stride);
  require(m.alignment == "global" || base_of(m).momentum_encoder, "method.alignment",
          "\"{}\" needs a base with a momentum encoder, {} has none; use \"global\"", m.alignment, base_of(m).name);
  levels_of(c);
}

void check_method(const Config& c) {
  const MethodConfig& m = c.method;
  std::vector<std::string> names;
  for (const Base& base : bases()) names.push_back(base.name);
  require_one_of("method.base", m.base, names);
  names.insert(names.begin(), "csml");
  require_one_of("method.name", m.name, names);
  require(m.directions >= 0 && m.directions <= 2, "method.directions", "must be 0, 1 or 2, got {}", m.directions);
  require(m.momentum >= 0 && m.momentum < 1, "method.momentum", "must be in [0, 1), got {}", m.momentum);
  require_one_of("method.momentum_schedule", m.momentum_schedule, {"constant", "cosine"});
  require(m.temperature > 0, "method.temperature", "must be above 0, got {}", m.temperature);
  require(m.queue > 0, "method.queue", "must be above 0, got {}", m.queue);
  require(m.bn_group_size == 0 || m.bn_group_size >= 2, "method.bn_group_size",
          "must be 0 (the whole batch) or at least 2, got {}", m.bn_group_size);
  require(m.bn_group_size == 0 || c.train.batch_size % m.bn_group_size == 0, "train.batch_size",
          "({}) must be a multiple of method.bn_group_size ({}); use --set method.bn_group_size=0 for one group",
          c.train.batch_size, m.bn_group_size);
  require(m.shuffle_span >= 0 && (m.shuffle_span == 0 || c.train.batch_size % m.shuffle_span == 0),
          "method.shuffle_span", "must be 0 (the whole batch) or divide train.batch_size ({}), got {}",
          c.train.batch_size, m.shuffle_span);
  require(m.neighbors >= 1, "method.neighbors", "must be at least 1, got {}", m.neighbors);
  require(m.refresh_epochs >= 1, "method.refresh_epochs", "must be at least 1, got {}", m.refresh_epochs);
  require(m.cutmix_alpha > 0, "method.cutmix_alpha", "must be above 0, got {}", m.cutmix_alpha);
  require_pair("method.weights", m.weights);
  require_pair("method.warmup_weights", m.warmup_weights);
  require(m.warmup_epochs >= -1, "method.warmup_epochs", "must be -1 (a share of the epochs) or more, got {}",
          m.warmup_epochs);
  require(!m.terms.empty(), "method.terms", "must name at least one of q, p, m");
  for (const std::string& term : m.terms) {
    require_one_of("method.terms", term, {"q", "p", "m"});
    require(std::count(m.terms.begin(), m.terms.end(), term) == 1, "method.terms", "names \"{}\" twice", term);
  }
  require_one_of("method.partner", m.partner, {"neighbor", "random", "labels"});
  require(m.partner_purity >= 0 && m.partner_purity <= 1, "method.partner_purity", "must be a share in [0, 1], got {}",
          m.partner_purity);
  const int parts = c.train.accumulate;
  const Base::Negatives negatives = base_of(m).negatives;
  require(parts >= 1, "train.accumulate", "must be at least 1, got {}", parts);
  require(parts == 1 || negatives == Base::Negatives::queue || negatives == Base::Negatives::none, "train.accumulate",
          "must be 1 for {}, whose negatives are the whole batch (share it out over processes instead), got {}",
          base_of(m).name, parts);
  require_one_of("method.form", m.form, {"csml", "out", "in", "mil"});
  require(m.queue_filter > -1, "method.queue_filter", "must be a cosine above -1 (1: off), got {}", m.queue_filter);
  require(
      !m.partner_negatives || (uses_partner(m) && base_of(m).in_batch()), "method.partner_negatives",
      "needs csml, with a partner in its terms or weights, over a base whose negatives are the batch (simclr, mocov3)");
  require(m.key_gradient || !base_of(m).momentum_encoder, "method.key_gradient",
          "= false needs a base without momentum encoder (simclr); the keys of {} never pass one", base_of(m).name);
  check_levels(c);
  for (const auto& [key, p] :
       {std::pair{"method.second_blur_p", m.second_blur_p}, std::pair{"method.second_solarize_p", m.second_solarize_p}})
    require(p == -1 || (p >= 0 && p <= 1), key, "must be a probability, or -1 (as of the first view), got {}", p);
  require(m.crop_weights.size() == 2 && m.crop_weights[0] >= 0 && m.crop_weights[1] >= 0, "method.crop_weights",
          "must be two weights of at least 0 (full views, each small crop), got [{}]", fmt::join(m.crop_weights, ", "));
  crop_recipes(c);
}

void check_training(const Config& c) {
  const TrainConfig& t = c.train;
  require(t.epochs >= 1, "train.epochs", "must be at least 1, got {}", t.epochs);
  require(t.batch_size >= 2, "train.batch_size", "must be at least 2, got {}", t.batch_size);
  require(t.seed <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max()), "train.seed",
          "must be below 2^63, got {}", t.seed);
  require(t.threads >= 0, "train.threads", "must be 0 (all cores) or more, got {}", t.threads);
  const bool numbered = t.device.starts_with("cuda:") && t.device.size() > 5 && t.device.size() < 10 &&
                        std::all_of(t.device.begin() + 5, t.device.end(), [](char x) { return x >= '0' && x <= '9'; });
  if (!numbered) require_one_of("train.device", t.device, {"auto", "cpu", "cuda", "cuda:N"});
  require(t.device != "cuda:N", "train.device", "\"cuda:N\": write the number of the device, for example cuda:0");
  require_one_of("train.precision", t.precision, {"fp32", "bf16", "fp16"});
  const LossScaleOptions& l = t.loss_scale;
  const std::pair<const char*, float> scales[] = {
      {"train.loss_scale", l.initial}, {"train.loss_scale_min", l.smallest}, {"train.loss_scale_max", l.largest}};
  for (const auto& [key, scale] : scales) {
    int exponent = 0;
    require(std::frexp(scale, &exponent) == 0.5f, key, "must be a power of two, got {}", scale);
  }
  require(l.smallest <= l.initial && l.initial <= l.largest, "train.loss_scale",
          "must be in train.loss_scale_min … train.loss_scale_max ({} … {}), got {}", l.smallest, l.largest, l.initial);
  require(l.interval >= 1, "train.loss_scale_interval", "must be at least 1, got {}", l.interval);
  require(t.log_every_steps >= 1, "train.log_every_steps", "must be at least 1, got {}", t.log_every_steps);
  require(t.checkpoint_every_steps >= 0, "train.checkpoint_every_steps", "must not be negative");
  require(t.checkpoint_every_epochs >= 0, "train.checkpoint_every_epochs", "must not be negative");
  require(t.milestone_every_epochs >= 0, "train.milestone_every_epochs", "must not be negative");
  require(t.keep_checkpoints >= 1, "train.keep_checkpoints", "must be at least 1, got {}", t.keep_checkpoints);
  require(t.checkpoint_retry_seconds > 0, "train.checkpoint_retry_seconds", "must be above 0, got {}",
          t.checkpoint_retry_seconds);
  require(t.max_steps >= 0, "train.max_steps", "must be 0 (no limit) or more, got {}", t.max_steps);
  require(t.max_hours >= 0, "train.max_hours", "must be 0 (no limit) or more, got {}", t.max_hours);
  require(t.stop_seconds >= 0, "train.stop_seconds", "must be 0 (no limit) or more, got {}", t.stop_seconds);
  require(t.max_non_finite_steps >= 1, "train.max_non_finite_steps", "must be at least 1, got {}",
          t.max_non_finite_steps);
  require(t.captured_steps >= 0, "train.captured_steps", "must be 0 (none) or more, got {}", t.captured_steps);

  require_one_of("optimizer.kind", c.optimizer.kind, {"sgd", "lars", "adamw"});
  require(c.optimizer.momentum >= 0 && c.optimizer.momentum < 1, "optimizer.momentum", "must be in [0, 1), got {}",
          c.optimizer.momentum);
  require(c.optimizer.weight_decay >= 0, "optimizer.weight_decay", "must not be negative, got {}",
          c.optimizer.weight_decay);

  const ScheduleOptions& s = c.schedule;
  require_one_of("schedule.kind", s.kind, {"cosine", "step", "constant"});
  require(c.lr_per_256 > 0, "schedule.lr", "must be above 0, got {}", c.lr_per_256);
  require(s.warmup_epochs >= 0 && (s.warmup_epochs == 0 || s.warmup_epochs < t.epochs), "schedule.warmup_epochs",
          "must be at least 0 and below train.epochs ({}), got {}", t.epochs, s.warmup_epochs);
  require(s.warmup_start >= 0 && s.warmup_start <= 1, "schedule.warmup_start", "must be in [0, 1], got {}",
          s.warmup_start);
  require(s.final_lr >= 0, "schedule.final_lr", "must not be negative, got {}", s.final_lr);
  require(s.decay > 0, "schedule.decay", "must be above 0, got {}", s.decay);
}

void check_model_and_evaluation(const Config& c) {
  const ModelConfig& m = c.model;
  require(m.depth == 18 || m.depth == 34 || m.depth == 50 || m.depth == 101, "model.depth",
          "must be 18, 34, 50 or 101, got {}", m.depth);
  require_one_of("model.stem", m.stem, {"imagenet", "cifar"});
  require(m.width >= 1 && m.width <= 1024, "model.width", "must be in 1 … 1024, got {}", m.width);
  require(m.head_hidden >= 0, "model.head_hidden", "must be 0 (as wide as the features) or more, got {}",
          m.head_hidden);
  require(m.dim >= 1, "model.dim", "must be at least 1, got {}", m.dim);
  require_one_of("model.head_bn", m.head_bn, {"auto", "none", "hidden", "all"});
  require(m.predictor_hidden >= 0, "model.predictor_hidden", "must be 0 (as the head) or more, got {}",
          m.predictor_hidden);
  require(m.level_blocks >= 1 && m.level_blocks <= 8, "model.level_blocks", "must be in 1 … 8, got {}", m.level_blocks);

  const EvalConfig& e = c.eval;
  require(e.knn_every_epochs >= 0, "eval.knn_every_epochs", "must be 0 (never) or more, got {}", e.knn_every_epochs);
  require(e.knn_k >= 1, "eval.knn_k", "must be at least 1, got {}", e.knn_k);
  require(e.knn_temperature > 0, "eval.knn_temperature", "must be above 0, got {}", e.knn_temperature);
  require(e.knn_train_limit >= 0, "eval.knn_train_limit", "must be 0 (all) or more, got {}", e.knn_train_limit);
  require(e.knn_test_limit >= 0, "eval.knn_test_limit", "must be 0 (all) or more, got {}", e.knn_test_limit);
  require(e.size >= 8, "eval.size", "must be at least 8 pixels, got {}", e.size);
  require(e.resize == 0 || e.resize >= e.size, "eval.resize",
          "must be 0 (images as they are) or at least eval.size ({}), got {}", e.size, e.resize);
  require_one_of("eval.interpolation", e.interpolation, {"bilinear", "bicubic"});
  require(e.batch_size >= 1, "eval.batch_size", "must be at least 1, got {}", e.batch_size);
}

}  // namespace

void resolve(Config& c) {
  require(c.data.workers >= 0 && c.data.workers <= 1024, "data.workers", "must be in 0 … 1024, got {}", c.data.workers);
  require(c.data.prefetch >= 1, "data.prefetch", "must be at least 1, got {}", c.data.prefetch);
  require(c.data.max_bad_share >= 0 && c.data.max_bad_share <= 1, "data.max_bad_share", "must be in [0, 1], got {}",
          c.data.max_bad_share);
  require(c.augment.crop_size >= 8, "augment.crop_size", "must be at least 8 pixels, got {}", c.augment.crop_size);
  require(c.augment.channels == 1 || c.augment.channels == 3, "augment.channels", "must be 1 or 3, got {}",
          c.augment.channels);
  check_augment(c.augment);
  check_model_and_evaluation(c);
  check_training(c);
  check_method(c);
  require(c.comm.bucket_mib >= 0 && c.comm.bucket_mib <= 1 << 20, "comm.bucket_mib",
          "must be 0 (an eighth of the gradient, at most 8) or more, got {}", c.comm.bucket_mib);
  require(c.comm.timeout_seconds >= 0, "comm.timeout_seconds", "must be 0 (no limit) or more, got {}",
          c.comm.timeout_seconds);

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
