#include "csml/config.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <utility>

#include "csml/siamese.h"
#include "kernels/check.h"

namespace csml {

std::vector<ConfigKey> config_keys(Config& c) {
  return {
      {"data.train", &c.data.train, "SPEC of the images to pretrain on"},
      {"data.test", &c.data.test, "SPEC of the online k-NN's queries; empty: no online k-NN"},
      {"data.workers", &c.data.workers, "loader threads; their number changes nothing in the result"},
      {"data.prefetch", &c.data.prefetch, "batches made ahead"},
      {"data.max_bad_share", &c.data.max_bad_share, "share of unreadable images beyond which the run stops"},

      {"augment.crop_size", &c.augment.crop_size, "side of every view, pixels"},
      {"augment.scale_min", &c.augment.scale_min, "random crop: least share of the image's area"},
      {"augment.scale_max", &c.augment.scale_max, "random crop: largest share of the image's area"},
      {"augment.ratio_min", &c.augment.ratio_min, "random crop: least width / height"},
      {"augment.ratio_max", &c.augment.ratio_max, "random crop: largest width / height"},
      {"augment.brightness", &c.augment.brightness, "jitter: factor in 1 -+ this"},
      {"augment.contrast", &c.augment.contrast, "jitter: factor in 1 -+ this"},
      {"augment.saturation", &c.augment.saturation, "jitter: factor in 1 -+ this"},
      {"augment.hue", &c.augment.hue, "jitter: shift in -+ this, turns of the colour circle"},
      {"augment.jitter_p", &c.augment.jitter_p, "probability of the colour jitter"},
      {"augment.gray_p", &c.augment.gray_p, "probability of gray"},
      {"augment.blur_p", &c.augment.blur_p, "probability of Gaussian blur"},
      {"augment.blur_sigma_min", &c.augment.blur_sigma_min, "blur: least sigma, pixels"},
      {"augment.blur_sigma_max", &c.augment.blur_sigma_max, "blur: largest sigma, pixels"},
      {"augment.solarize_p", &c.augment.solarize_p, "probability of solarisation"},
      {"augment.flip_p", &c.augment.flip_p, "probability of a horizontal flip"},
      {"augment.channels", &c.augment.channels, "of the images: 3, or 1 with ?channels=1 in the SPEC"},
      {"augment.mean", &c.augment.mean, "per channel, subtracted from pixels in [0, 1]"},
      {"augment.std", &c.augment.std, "per channel, divides after the mean"},

      {"model.depth", &c.model.depth, "ResNet of 18, 34, 50 or 101 layers"},
      {"model.stem", &c.model.stem, "imagenet (7x7 stride 2, max pool) | cifar (3x3 stride 1)"},
      {"model.width", &c.model.width, "channels of the first stage; 64 is the published network"},
      {"model.head_hidden", &c.model.head_hidden, "hidden units of the head; 0: as wide as the features"},
      {"model.head_mlp", &c.model.head_mlp, "two-layer head (MoCo v2); false: one linear layer (v1)"},
      {"model.dim", &c.model.dim, "dimensions of the embedding"},
      {"model.head_bn", &c.model.head_bn,
       "batch norm in the heads: none | hidden | all; auto: as the base is published"},
      {"model.predictor_hidden", &c.model.predictor_hidden,
       "byol, mocov3: hidden units of the predictor; 0: as the head"},
      {"model.level_blocks", &c.model.level_blocks, "residual blocks of a lower level's head, the first with stride 2"},

      {"method.name", &c.method.name, "csml | moco | simclr | byol | mocov3"},
      {"method.base", &c.method.base, "csml: the method it builds on: moco | simclr | byol | mocov3"},
      {"method.directions", &c.method.directions, "of the loss: 1, 2 (symmetrised); 0: as the base is published"},
      {"method.momentum", &c.method.momentum, "of the key encoder, per optimizer step"},
      {"method.momentum_schedule", &c.method.momentum_schedule, "constant | cosine (rises to 1 at the end)"},
      {"method.temperature", &c.method.temperature, "of the contrastive loss"},
      {"method.queue", &c.method.queue, "keys in the queue"},
      {"method.bn_group_size", &c.method.bn_group_size, "images per batch-norm group; 0: the whole batch"},
      {"method.bn_sync", &c.method.bn_sync, "a batch-norm group may span processes, which exchange its statistics"},
      {"method.shuffle", &c.method.shuffle, "permute the key batch over the groups"},
      {"method.shuffle_span", &c.method.shuffle_span, "images inside which it is permuted; 0: the whole global batch"},
      {"method.neighbors", &c.method.neighbors, "csml: nearest neighbours a cross-sample is drawn from"},
      {"method.refresh_epochs", &c.method.refresh_epochs, "csml: epochs between searches of the neighbours"},
      {"method.cutmix_alpha", &c.method.cutmix_alpha, "csml: CutMix draws its share from Beta(alpha, alpha)"},
      {"method.weights", &c.method.weights, "csml: of the own and the partner's key after the warm-up"},
      {"method.warmup_weights", &c.method.warmup_weights, "csml: the same during the warm-up"},
      {"method.warmup_epochs", &c.method.warmup_epochs, "csml: its epochs; -1: max(1, round(0.055 * epochs))"},
      {"method.terms", &c.method.terms, "csml: terms of the loss, of q (own), p (partner), m (CutMix)"},
      {"method.partner", &c.method.partner, "csml: cross-samples are neighbor | random"},
      {"method.warmup_gates_mixed", &c.method.warmup_gates_mixed, "csml: the CutMix term too starts after the warm-up"},
      {"method.form", &c.method.form, "of several positives: csml | out | in | mil (docs/method.md)"},
      {"method.queue_filter", &c.method.queue_filter,
       "negatives with a larger cosine to a positive do not count; 1: off"},
      {"method.partner_negatives", &c.method.partner_negatives,
       "csml over simclr, mocov3: the partners' views are negatives too"},
      {"method.key_gradient", &c.method.key_gradient, "simclr: keys and negatives pass their gradient"},
      {"method.levels", &c.method.levels, "stages with a loss, of res2 … res5"},
      {"method.level_weights", &c.method.level_weights, "of the levels' losses, in their order; empty: all 1"},
      {"method.alignment", &c.method.alignment, "of levels below res5: global | patch | patch-lite"},
      {"method.patch_window", &c.method.patch_window, "side of a patch, pixels of the map; 0: 8/14 of the map"},
      {"method.patch_stride", &c.method.patch_stride, "of the search for the best patch; 0: 3/14 of the map"},
      {"method.crop_sizes", &c.method.crop_sizes, "small crops: their sides, pixels; empty: none"},
      {"method.crop_counts", &c.method.crop_counts, "small crops of each size; empty: 1"},
      {"method.crop_scale_min", &c.method.crop_scale_min, "least share of the area, per size; empty: by the side"},
      {"method.crop_scale_max", &c.method.crop_scale_max, "largest share of the area, per size; empty: by the side"},
      {"method.crop_weights", &c.method.crop_weights, "of the full views' loss, and of each small crop's"},
      {"method.crop_statistics", &c.method.crop_statistics, "small crops update the running statistics"},
      {"method.second_blur_p", &c.method.second_blur_p, "augment.blur_p of the second views, k and kp; -1: the same"},
      {"method.second_solarize_p", &c.method.second_solarize_p, "augment.solarize_p of the second views; -1: the same"},

      {"optimizer.kind", &c.optimizer.kind, "sgd | lars | adamw"},
      {"optimizer.momentum", &c.optimizer.momentum, "sgd, lars"},
      {"optimizer.weight_decay", &c.optimizer.weight_decay, "on all parameters; lars: but biases and batch norm"},
      {"optimizer.trust", &c.optimizer.trust, "lars: trust coefficient"},
      {"optimizer.beta1", &c.optimizer.beta1, "adamw"},
      {"optimizer.beta2", &c.optimizer.beta2, "adamw"},
      {"optimizer.eps", &c.optimizer.eps, "adamw"},

      {"schedule.kind", &c.schedule.kind, "cosine | step | constant"},
      {"schedule.lr", &c.lr_per_256, "learning rate per 256 images, scaled linearly with the global batch"},
      {"schedule.warmup_epochs", &c.schedule.warmup_epochs, "epochs of linear warm-up of the learning rate"},
      {"schedule.warmup_start", &c.schedule.warmup_start, "share of the learning rate the warm-up starts at"},
      {"schedule.final_lr", &c.schedule.final_lr, "where cosine ends (not scaled)"},
      {"schedule.milestones", &c.schedule.milestones, "step: epochs after which the rate is multiplied by decay"},
      {"schedule.decay", &c.schedule.decay, "step: the factor"},
      {"schedule.per_epoch", &c.schedule.per_epoch, "the rate changes between epochs only (as MoCo's code does)"},

      {"train.epochs", &c.train.epochs, "passes over the data"},
      {"train.batch_size", &c.train.batch_size, "images per step, of all processes together"},
      {"train.accumulate", &c.train.accumulate,
       "parts in which a step's batch is computed one after the other, for less memory; the step stays the same"},
      {"train.seed", &c.train.seed, "of every random draw"},
      {"train.threads", &c.train.threads, "compute threads of the CPU; 0: all cores"},
      {"train.device", &c.train.device, "auto | cpu | cuda | cuda:N"},
      {"train.precision", &c.train.precision, "fp32 | bf16 | fp16, of activations and products; 16 bits on a GPU only"},
      {"train.loss_scale", &c.train.loss_scale.initial, "fp16: factor of the loss at the start, a power of two"},
      {"train.loss_scale_interval", &c.train.loss_scale.interval, "fp16: finite steps after which the factor doubles"},
      {"train.loss_scale_min", &c.train.loss_scale.smallest, "fp16: the factor is never halved below this"},
      {"train.loss_scale_max", &c.train.loss_scale.largest, "fp16: the factor is never doubled above this"},
      {"train.log_every_steps", &c.train.log_every_steps, "steps between lines of metrics.jsonl"},
      {"train.checkpoint_every_steps", &c.train.checkpoint_every_steps, "0: by epochs only"},
      {"train.checkpoint_every_epochs", &c.train.checkpoint_every_epochs, "0: by steps only"},
      {"train.milestone_every_epochs", &c.train.milestone_every_epochs, "such checkpoints are kept; 0: none"},
      {"train.keep_checkpoints", &c.train.keep_checkpoints, "newest checkpoints that are kept"},
      {"train.checkpoint_retry_seconds", &c.train.checkpoint_retry_seconds,
       "until a checkpoint that could not be written is tried again"},
      {"train.max_steps", &c.train.max_steps, "stop after so many steps, schedule unchanged; 0: no limit"},
      {"train.max_hours", &c.train.max_hours, "stop with a checkpoint after so many hours of this start; 0: no limit"},
      {"train.stop_seconds", &c.train.stop_seconds,
       "longest from a signal to the end; then the process ends at once; 0: no "
       "limit"},
      {"train.max_non_finite_steps", &c.train.max_non_finite_steps,
       "steps in a row without a finite gradient after which the run ends"},
      {"train.captured_steps", &c.train.captured_steps,
       "steps without a finite gradient kept for csml replay; 0: none"},

      {"eval.knn_every_epochs", &c.eval.knn_every_epochs, "online k-NN; 0: never"},
      {"eval.knn_k", &c.eval.knn_k, "neighbours that vote"},
      {"eval.knn_temperature", &c.eval.knn_temperature, "of the votes' weights"},
      {"eval.knn_train_limit", &c.eval.knn_train_limit, "images of the bank, class-balanced; 0: all"},
      {"eval.knn_test_limit", &c.eval.knn_test_limit, "queries, class-balanced; 0: all"},
      {"eval.resize", &c.eval.resize, "short side before the crop, pixels; 0: images as they are"},
      {"eval.size", &c.eval.size, "central crop, pixels"},
      {"eval.interpolation", &c.eval.interpolation, "bilinear | bicubic"},
      {"eval.batch_size", &c.eval.batch_size, "images per forward pass; changes nothing in the result"},

      {"comm.bucket_mib", &c.comm.bucket_mib,
       "least MiB of a bucket of gradients, reduced while backward goes on; 0: an eighth of all, at most 8"},
      {"comm.timeout_seconds", &c.comm.timeout_seconds, "longest wait for another process before the end; 0: no limit"},
  };
}

namespace {

using nlohmann::json;

/// A float as the shortest decimal that reads back as the same float: 0.2, not 0.20000000298.
double decimal(float value) { return std::stod(fmt::format("{}", value)); }

template <class T>
void put_number(const std::string& key, const json& value, T& target) {
  if constexpr (std::is_floating_point_v<T>) {
    if (!value.is_number()) throw UsageError(cat("{} must be a number, got {}", key, value.dump()));
    target = value.get<T>();
    if (!std::isfinite(target)) throw UsageError(cat("{} must be finite, got {}", key, value.dump()));
  } else {
    // JSON keeps signed and unsigned apart: each is compared in its own type.
    constexpr T least = std::numeric_limits<T>::min(), most = std::numeric_limits<T>::max();
    const bool fits = value.is_number_unsigned()
                          ? value.get<uint64_t>() <= static_cast<uint64_t>(most)
                          : value.is_number_integer() && std::cmp_greater_equal(value.get<int64_t>(), least) &&
                                std::cmp_less_equal(value.get<int64_t>(), most);
    if (!fits) {
      throw UsageError(cat("{} must be a whole number{}{}, got {}", key, std::is_signed_v<T> ? "" : " of at least 0",
                           sizeof(T) < 8 ? " below 2^31" : "", value.dump()));
    }
    target = value.get<T>();
  }
}

template <class T>
void put_list(const std::string& key, const json& value, std::vector<T>& target) {
  constexpr bool text = std::is_same_v<T, std::string>;
  if (!value.is_array()) {
    throw UsageError(cat("{} must be a list of {}, got {}", key, text ? "texts" : "numbers", value.dump()));
  }
  std::vector<T> list;
  for (const json& item : value) {
    if (text ? !item.is_string() : !item.is_number())
      throw UsageError(cat("{} must be a list of {}, got {}", key, text ? "texts" : "numbers", value.dump()));
    list.push_back(item.get<T>());
  }
  target = std::move(list);
}

struct Put {
  const std::string& key;
  const json& value;

  void operator()(bool* target) const {
    if (!value.is_boolean()) throw UsageError(cat("{} must be true or false, got {}", key, value.dump()));
    *target = value.get<bool>();
  }
  void operator()(std::string* target) const {
    if (!value.is_string()) throw UsageError(cat("{} must be text, got {}", key, value.dump()));
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
      throw UsageError(cat("{} must be a list of 1 to 4 numbers, got {}", key, value.dump()));
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
  require_one_of("method.partner", m.partner, {"neighbor", "random"});
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

bool uses_partner(const MethodConfig& m) {
  return m.name == "csml" &&
         (m.terms != std::vector<std::string>{"q"} || m.weights[1] != 0 || m.warmup_weights[1] != 0);
}

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
  if (!all.is_object()) throw UsageError(cat("a configuration must be an object of sections, got {}", all.dump()));
  for (const auto& [section, keys] : all.items()) {
    if (!keys.is_object()) throw UsageError(cat("[{}] must be a section of keys, got {}", section, keys.dump()));
    for (const auto& [name, value] : keys.items()) {
      const std::string key = section + "." + name;
      const auto found = values.find(key);
      if (found == values.end()) throw UsageError(cat("unknown configuration key {}", key));
      std::visit(Put{key, value}, found->second);
    }
  }
  return config;
}

}  // namespace csml
