// Config: everything a pretraining run is told, by section. apps/config.cpp reads it from TOML, environment and flags;
// defaults here are MoCo v2 on ImageNet (docs/method.md gives the source of each). Each member is a key: table.cpp says
// what it means, in what unit and which values it may have, and docs/keys.md shows that table.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "data/augment.h"
#include "engine/optim.h"
#include "engine/precision.h"

namespace csml {

struct DataConfig {
  std::string train;
  std::string test;
  int workers = 2;
  int prefetch = 3;
  double max_bad_share = 0.05;
};

struct ModelConfig {
  std::string trunk = "resnet";
  int depth = 50;
  std::string stem = "imagenet";
  int width = 64;
  int head_hidden = 0;
  bool head_mlp = true;
  int dim = 128;
  std::string head_bn = "auto";
  int predictor_hidden = 0;
  int level_blocks = 2;
};

struct MethodConfig {
  std::string name = "csml";
  std::string base = "moco";
  int directions = 0;
  double momentum = 0.999;
  std::string momentum_schedule = "constant";
  double temperature = 0.2;
  int64_t queue = 65536;
  int bn_group_size = 32;
  bool bn_sync = false;
  bool shuffle = true;
  int shuffle_span = 0;
  // CsMl:
  int neighbors = 5;
  int refresh_epochs = 5;
  double cutmix_alpha = 2.0;
  std::vector<double> weights{0.5, 0.5};
  std::vector<double> warmup_weights{1.0, 0.0};
  int warmup_epochs = -1;
  std::vector<std::string> terms{"q", "p", "m"};
  std::string partner = "neighbor";
  double partner_purity = 1;
  bool warmup_gates_mixed = true;
  std::string form = "csml";
  double queue_filter = 1;
  bool partner_negatives = false;
  bool key_gradient = true;
  // Levels:
  std::vector<std::string> levels{"res5"};
  std::vector<double> level_weights;
  std::string alignment = "global";
  int patch_window = 0;
  int patch_stride = 0;
  // Small crops:
  std::vector<double> crop_sizes;
  std::vector<double> crop_counts;
  std::vector<double> crop_scale_min, crop_scale_max;
  std::vector<double> crop_weights{0.5, 0.5};
  bool crop_statistics = true;
  // The second views
  double second_blur_p = -1, second_solarize_p = -1;
};

struct TrainConfig {
  int epochs = 200;
  int batch_size = 256;
  int accumulate = 1;
  uint64_t seed = 0;
  int threads = 0;
  std::string device = "auto";
  std::string precision = "fp32";
  LossScaleOptions loss_scale;
  int log_every_steps = 20;
  int checkpoint_every_steps = 0;
  int checkpoint_every_epochs = 1;
  int milestone_every_epochs = 100;
  int keep_checkpoints = 2;
  double checkpoint_retry_seconds = 60;
  int max_steps = 0;
  double max_hours = 0;
  double stop_seconds = 90;
  int max_non_finite_steps = 20;
  int captured_steps = 3;
};

struct EvalConfig {
  int knn_every_epochs = 5;
  int knn_k = 20;
  double knn_temperature = 0.07;
  int64_t knn_train_limit = 5000;
  int64_t knn_test_limit = 2000;
  int resize = 256;
  int size = 224;
  std::string interpolation = "bicubic";
  int batch_size = 256;
};

struct CommConfig {
  double bucket_mib = 0;
  double timeout_seconds = 600;
};

struct Config {
  DataConfig data;
  AugmentConfig augment;
  ModelConfig model;
  MethodConfig method;
  OptimizerOptions optimizer{.kind = "sgd", .momentum = 0.9f, .weight_decay = 1e-4f};
  ScheduleOptions schedule;
  double lr_per_256 = 0.03;  // schedule.lr: base_lr = lr_per_256 * batch_size / 256
  TrainConfig train;
  EvalConfig eval;
  CommConfig comm;
};

/// Whether CsMl shows partners at all. With the first term alone and no weight on the partner's key it is its base, and
/// no partner is even loaded.
bool uses_partner(const MethodConfig& method);

/// {"section": {"key": value}} of every key, and back (unknown keys throw UsageError).
nlohmann::json to_json(const Config& config);
Config config_from_json(const nlohmann::json& json);

}  // namespace csml
