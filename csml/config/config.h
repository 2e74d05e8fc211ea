// Config: everything a pretraining run is told, by section. apps/config.cpp reads it from TOML, environment and flags;
// defaults here are MoCo v2 on ImageNet (docs/method.md gives the source of each).
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <variant>
#include <vector>

#include "data/augment.h"
#include "engine/optim.h"
#include "engine/precision.h"

namespace csml {

struct DataConfig {
  std::string train;            // SPEC of the images to pretrain on
  std::string test;             // SPEC of the online k-NN's queries; empty: no online k-NN
  int workers = 2;              // loader threads; their number changes nothing in the result
  int prefetch = 3;             // batches made ahead
  double max_bad_share = 0.05;  // of unreadable images; beyond it the run stops
};

struct ModelConfig {
  int depth = 50;                 // 18, 34, 50, 101
  std::string stem = "imagenet";  // imagenet | cifar
  int width = 64;                 // channels of the first stage
  int head_hidden = 0;            // 0: as wide as the backbone's features
  bool head_mlp = true;           // MoCo v2's MLP; false: one linear layer
  int dim = 128;                  // of the embedding
  std::string head_bn = "auto";   // batch norm in the heads: none | hidden | all; auto: as the base is published
  int predictor_hidden = 0;       // 0: as head_hidden
  int level_blocks = 2;           // residual blocks of a lower level's head
};

struct MethodConfig {
  std::string name = "csml";                   // csml | moco | simclr | byol | mocov3
  std::string base = "moco";                   // csml: what it builds on
  int directions = 0;                          // of the loss: 1, 2 (symmetrised); 0: as the base is published
  double momentum = 0.999;                     // of the key encoder, per optimizer step
  std::string momentum_schedule = "constant";  // constant | cosine (to 1)
  double temperature = 0.2;
  int64_t queue = 65536;
  int bn_group_size = 32;  // images per batch-norm group; 0: the whole batch
  bool bn_sync = false;    // a batch-norm group may span processes, which then exchange its statistics
  bool shuffle = true;     // permute the key batch over the groups
  int shuffle_span = 0;    // images inside which it is permuted; 0: the whole global batch
  // CsMl:
  int neighbors = 5;       // k of the neighbour table
  int refresh_epochs = 5;  // the table is renewed at the start of every such epoch
  double cutmix_alpha = 2.0;
  std::vector<double> weights{0.5, 0.5};          // (own key, partner's key) after the warm-up
  std::vector<double> warmup_weights{1.0, 0.0};   // during it
  int warmup_epochs = -1;                         // epochs with warmup_weights; -1: max(1, round(0.055 * epochs))
  std::vector<std::string> terms{"q", "p", "m"};  // which of the three terms are used
  std::string partner = "neighbor";               // neighbor | random | labels: where the cross-sample comes from
  double partner_purity = 1;                      // partner = labels: share of partners of the image's own class
  bool warmup_gates_mixed = true;                 // the mixed term too starts after the warm-up
  std::string form = "csml";                      // of several positives: csml | out | in | mil
  double queue_filter = 1;         // negatives with a larger cosine to a positive do not count; 1: all count
  bool partner_negatives = false;  // over a base whose negatives are the batch: the partners' views are some too
  bool key_gradient = true;        // a base without momentum encoder: keys and negatives pass their gradient
  // Levels:
  std::vector<std::string> levels{"res5"};  // stages with a loss
  std::vector<double> level_weights;        // one per level; empty: all 1
  std::string alignment = "global";         // of lower levels: global | patch | patch-lite
  int patch_window = 0;                     // side of a patch on the map; 0: 8/14 of the map
  int patch_stride = 0;                     // of the search for the best one; 0: 3/14 of the map
  // Small crops:
  std::vector<double> crop_sizes;                      // pixels; empty: none
  std::vector<double> crop_counts;                     // of each size; empty: 1
  std::vector<double> crop_scale_min, crop_scale_max;  // shares of the area; empty: augment's times size / crop_size
  std::vector<double> crop_weights{0.5, 0.5};          // of the full views' loss, and of each small crop's
  bool crop_statistics = true;                         // small crops update the running statistics
  // The second view of an image (k, kp), where it differs from the first (BYOL, MoCo v3); -1: as augment's
  double second_blur_p = -1, second_solarize_p = -1;
};

struct TrainConfig {
  int epochs = 200;
  int batch_size = 256;  // global, of an optimizer step
  int accumulate = 1;    // parts in which each process computes its share of it, one after the other
  uint64_t seed = 0;
  int threads = 0;  // compute threads of the CPU; 0: all cores
  std::string device = "auto";
  std::string precision = "fp32";  // fp32 | bf16 | fp16; 16 bits on a GPU only
  LossScaleOptions loss_scale;     // fp16
  int log_every_steps = 20;
  int checkpoint_every_steps = 0;  // 0: only by epochs
  int checkpoint_every_epochs = 1;
  int milestone_every_epochs = 100;  // these checkpoints are kept
  int keep_checkpoints = 2;
  double checkpoint_retry_seconds = 60;  // until a checkpoint that could not be written is tried again
  int max_steps = 0;                     // stop after so many steps in total (0: no limit); the schedule is not changed
  double max_hours = 0;                  // stop, as by a signal, after so much time of this start; 0: no limit
  double stop_seconds = 90;       // longest from a signal to the end; past it the process ends at once; 0: no limit
  int max_non_finite_steps = 20;  // steps in a row without a finite gradient after which the run ends
  int captured_steps = 3;         // such steps that are kept for csml replay; 0: none
};

struct EvalConfig {
  int knn_every_epochs = 5;  // online k-NN; 0: never
  int knn_k = 20;
  double knn_temperature = 0.07;
  int64_t knn_train_limit = 5000;  // class-balanced
  int64_t knn_test_limit = 2000;
  int resize = 256;  // short side; 0: images as they are
  int size = 224;    // central crop
  std::string interpolation = "bicubic";
  int batch_size = 256;
};

struct CommConfig {
  double bucket_mib = 0;         // least size of a gradient bucket; 0: an eighth of the gradient, at most 8
  double timeout_seconds = 600;  // longest that a process waits for the others; 0: no limit
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

/// One configuration key: "section.key", where its value lives in a Config, and its line of documentation (with unit).
struct ConfigKey {
  using Value = std::variant<bool*, int*, int64_t*, uint64_t*, float*, double*, std::string*, std::vector<double>*,
                             std::vector<std::string>*, std::array<float, 4>*>;
  std::string name;
  Value value;
  std::string help;
};
/// The one table of all keys: TOML, environment, --set, JSON and the documentation are made from it.
std::vector<ConfigKey> config_keys(Config& config);

/// Whether CsMl shows partners at all. With the first term alone and no weight on the partner's key it is its base, and
/// no partner is even loaded.
bool uses_partner(const MethodConfig& method);

/// {"section": {"key": value}} of every key, and back (unknown keys throw UsageError).
nlohmann::json to_json(const Config& config);
Config config_from_json(const nlohmann::json& json);

}  // namespace csml
