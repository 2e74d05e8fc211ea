#include "csml/train_loop.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <limits>
#include <mutex>
#include <optional>
#include <set>

#include "csml/batch_layout.h"
#include "csml/method.h"
#include "csml/neighbors.h"
#include "csml/probe_knn.h"
#include "csml/saved_model.h"
#include "csml/siamese.h"
#include "engine/checkpoint.h"
#include "engine/event_log.h"
#include "engine/log.h"
#include "engine/step.h"
#include "models/weights.h"

namespace csml {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

NamedArray download(const std::string& name, const Tensor& t) {
  NamedArray array{name, t.dtype(), t.shape(), std::vector<std::byte>(t.bytes())};
  t.download_bytes(array.data.data());
  return array;
}

std::vector<HostArray> views_of(const std::vector<NamedArray>& arrays) {
  std::vector<HostArray> views;
  for (const NamedArray& a : arrays) views.push_back({a.name, a.dtype, a.shape, a.data.data()});
  return views;
}

void restore(const SafetensorsFile& file, const std::string& name, const Tensor& t) {
  const ArrayInfo& info = file.info(name);
  if (info.dtype != t.dtype() || !(info.shape == t.shape()))
    throw Error(cat("{}: '{}' is {} {} where this run has {} {}: the checkpoint is of another configuration",
                    file.path().string(), name, name_of(info.dtype), info.shape.text(), name_of(t.dtype()),
                    t.shape().text()));
  std::vector<std::byte> bytes(t.bytes());
  file.read(name, bytes.data(), bytes.size());
  t.upload_bytes(bytes.data());
}

/// Where a run stands: the next batch to train on.
struct Position {
  int64_t step = 0, epoch = 0, batch = 0;
};

class Run {
 public:
  Run(Device& device, Comm& comm, const Config& config, const RunOptions& options)
      : device_(device),
        comm_(comm),
        writes_(comm.rank() == 0),
        config_(config),
        options_(options),
        train_(open_dataset(config.data.train)),
        method_(make_method(device, config, train_->channels(), comm)),
        step_(
            device, [this] { method_->step(); }, comm.recordable() ? 1 : std::numeric_limits<int>::max()) {
    if (writes_) {
      store_.emplace(options.out, CheckpointStore::Options{.keep_last = config.train.keep_checkpoints,
                                                           .warn = [](const std::string& l) { log_warn(l); }});
      metrics_.emplace(options.out / "metrics.jsonl");
      bad_images_.emplace(options.out / "bad_images.jsonl");
      std::ifstream named(bad_images_->path());
      for (std::string line; std::getline(named, line);)
        if (const auto entry = nlohmann::json::parse(line, nullptr, false); entry.is_object())
          bad_paths_.insert(entry.value("path", std::string()));
    }
    if (!config.data.test.empty()) test_ = open_dataset(config.data.test);
    steps_per_epoch_ = train_->size() / config.train.batch_size;
    if (steps_per_epoch_ < 1)
      throw UsageError(cat("train.batch_size = {} is larger than the data set ({} images)", config.train.batch_size,
                           train_->size()));
    if (method_->needs_neighbors() && train_->size() <= config.method.neighbors)
      throw UsageError(cat("method.neighbors = {} needs more than {} images", config.method.neighbors, train_->size()));
  }

  RunResult go();

 private:
  // What is said about the run, never what it computes.
  void event(const std::string& name, const std::string& text);
  void write(nlohmann::json line);

  void resume();
  void read_checkpoint();
  void check_same_data();
  void share_state();
  void share_bad_images();
  void init_weights(const std::filesystem::path& file);
  bool train_epoch();
  void log_step(int64_t steps);
  void refresh_neighbors();
  void evaluate();
  bool save(bool required);
  bool stop_agreed();
  /// Distinct unreadable images; those of the other processes as of the last epoch's end.
  int64_t bad_images() const {
    const std::lock_guard lock(bad_mutex_);
    return std::max(loader_->bad_images(), comm_.size() > 1 ? static_cast<int64_t>(bad_paths_.size()) : 0);
  }
  bool out_of_steps() const { return config_.train.max_steps > 0 && at_.step >= config_.train.max_steps; }
  FeatureOptions feature_options() const;
  BadImageCallback on_bad_image();

  Device& device_;
  Comm& comm_;
  const bool writes_;  // this process keeps the run's folder: log, checkpoints, bad images
  const Config& config_;
  const RunOptions& options_;
  std::unique_ptr<Dataset> train_, test_, knn_train_, knn_test_;
  std::unique_ptr<Method> method_;
  std::optional<CheckpointStore> store_;
  std::optional<MetricsLog> metrics_, bad_images_;
  std::optional<EventLog> events_;                          // metrics_ once more, from when the position is known
  mutable std::mutex bad_mutex_;                            // a loader's threads find bad images while steps go on
  std::set<std::string> bad_paths_;                         // known here
  nlohmann::json bad_unwritten_ = nlohmann::json::array();  // met here since the last share_bad_images()
  Step step_;
  std::unique_ptr<Loader> loader_;
  std::shared_ptr<const NeighborTable> table_;
  double purity_ = -1, churn_ = -1;
  int64_t steps_per_epoch_ = 0;
  Position at_;
  int64_t last_saved_ = -1;
  int non_finite_logs_ = 0;
  bool at_floor_ = false;  // of the loss scale
  std::optional<Progress> progress_;
  RunResult result_;
  // Since the last step line
  Clock::time_point interval_start_;
  double interval_wait_ = 0;
  double epoch_loss_ = 0;
  int64_t epoch_steps_ = 0;
};

BadImageCallback Run::on_bad_image() {
  return [this](const std::string& path, const std::string& reason) {
    const std::lock_guard lock(bad_mutex_);
    if (!bad_paths_.insert(path).second) return;  // the training loader and each refresh meet the same files
    const nlohmann::json line{{"path", path}, {"reason", reason}};
    writes_ ? bad_images_->write(line) : bad_unwritten_.push_back(line);
    log_warn(cat("unreadable image replaced: {} ({})", path, reason));
  };
}

void Run::share_bad_images() {
  if (comm_.size() == 1) return;
  std::string mine;
  {
    const std::lock_guard lock(bad_mutex_);
    mine = bad_unwritten_.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    bad_unwritten_ = nlohmann::json::array();
  }
  const std::vector<std::string> all = gather_text(comm_, device_, mine);
  if (!writes_) return;
  const std::lock_guard lock(bad_mutex_);
  for (const std::string& text : all)
    for (const nlohmann::json& line : nlohmann::json::parse(text))
      if (bad_paths_.insert(line["path"].get<std::string>()).second) bad_images_->write(line);
}

bool Run::stop_agreed() {
  const bool asked = options_.stop && options_.stop->load();
  if (comm_.size() == 1) return asked;
  const Tensor vote = Tensor::from(device_, {1}, std::vector<int32_t>{asked ? 1 : 0});
  comm_.all_reduce_max(vote);
  return vote.host<int32_t>()[0] != 0;
}

void Run::write(nlohmann::json line) {
  if (!writes_) return;
  line["step"] = at_.step;
  line["epoch"] = at_.epoch;
  if (events_) events_->write(line);
  try {
    metrics_->write(std::move(line));
  } catch (const Error& e) { log_warn(cat("{}; training goes on without this line", e.what())); }
}

void Run::event(const std::string& name, const std::string& text) {
  write({{"kind", "event"}, {"event", name}, {"text", text}});
}

FeatureOptions Run::feature_options() const {
  FeatureOptions o;
  o.transform = {.resize = config_.eval.resize,
                 .size = config_.eval.size,
                 .filter = config_.eval.interpolation == "bilinear" ? Filter::bilinear : Filter::bicubic};
  o.normalise = config_.augment;
  o.batch_size = config_.eval.batch_size;
  o.workers = config_.data.workers;
  o.max_bad_share = config_.data.max_bad_share;
  o.comm = &comm_;
  return o;
}

RunResult Run::go() {
  const Clock::time_point start = Clock::now();
  LoaderOptions lo;
  lo.seed = config_.train.seed;
  lo.workers = config_.data.workers;
  const BatchLayout layout = batch_layout(config_, comm_);
  lo.batch_size = static_cast<int>(layout.local);
  lo.rank = comm_.rank();
  lo.ranks = comm_.size();
  lo.shuffle_span = layout.loader_shuffles ? layout.span : 0;
  lo.prefetch = config_.data.prefetch;
  lo.max_bad_share = config_.data.max_bad_share;
  lo.on_bad_image = on_bad_image();
  loader_ = std::make_unique<Loader>(*train_, method_->views(), lo);

  resume();
  log_info(cat("training {} on {}: {} epochs of {} steps, batch {}, {} parameters, device {}{}", config_.method.name,
               train_->describe(), config_.train.epochs, steps_per_epoch_, config_.train.batch_size,
               method_->query_encoder().params().count(), device_.name(),
               comm_.size() > 1 ? cat(", {} processes of {} images", comm_.size(), layout.local) : ""));
  const int64_t total = int64_t{config_.train.epochs} * steps_per_epoch_;
  progress_.emplace("pretrain", config_.train.max_steps > 0 ? std::min<int64_t>(total, config_.train.max_steps) : total,
                    "steps", at_.step);

  if (at_.step == 0) {
    evaluate();  // the untrained encoder: what the first point of the curve means
    save(true);  // also finds out now, not in an hour, whether the folder takes a checkpoint
  }
  bool stop = stop_agreed();
  while (at_.epoch < config_.train.epochs && !stop && !out_of_steps()) stop = train_epoch();
  progress_->finish();
  result_.stopped = at_.epoch < config_.train.epochs && stop;
  share_bad_images();
  if (last_saved_ != at_.step) save(true);
  if (result_.stopped) event("stopped", "a signal asked the run to stop; the same command goes on");
  result_.steps = at_.step;
  result_.epochs = at_.epoch;
  result_.bad_images = bad_images();
  result_.seconds = seconds_since(start);
  return result_;
}

/// True when a signal asks for the end of the run.
bool Run::train_epoch() {
  const Clock::time_point start = Clock::now();
  if (method_->needs_neighbors() && at_.batch == 0 && at_.epoch % config_.method.refresh_epochs == 0)
    refresh_neighbors();
  CHECK(!method_->needs_neighbors() || table_, "the checkpoint holds no neighbour table");
  loader_->start_epoch(at_.epoch, at_.batch, table_);
  epoch_loss_ = 0;
  epoch_steps_ = 0;
  int64_t since_log = 0;
  interval_start_ = Clock::now();
  interval_wait_ = 0;
  Batch batch;
  while (loader_->next(batch)) {
    interval_wait_ += batch.wait_seconds;
    const double progress =
        static_cast<double>(at_.epoch) + static_cast<double>(at_.batch) / static_cast<double>(steps_per_epoch_);
    method_->load(batch, {.step = at_.step, .epoch = at_.epoch, .progress = progress});
    comm_.phase(cat("step {}", at_.step + 1));
    step_.run();
    ++at_.step;
    ++at_.batch;
    ++since_log;
    if (at_.step % config_.train.log_every_steps == 0 || at_.batch == steps_per_epoch_) {
      log_step(since_log);
      since_log = 0;
    }
    progress_->update(at_.step, cat("epoch {} loss {:.3f}{}{}", at_.epoch, result_.loss,
                                    result_.knn_top1 >= 0 ? cat("  k-NN {:.1f} %", result_.knn_top1) : "",
                                    bad_images() ? cat("  {} bad images", bad_images()) : ""));
    const bool last = at_.batch == steps_per_epoch_;
    const int every = config_.train.checkpoint_every_steps;
    if (every > 0 && at_.step % every == 0 && !last) save(false);
    const bool stop = stop_agreed();
    if ((stop || out_of_steps()) && !last) return stop;
  }
  comm_.phase(cat("the end of epoch {}", at_.epoch));
  share_bad_images();
  nlohmann::json line{{"kind", "epoch"},
                      {"loss", epoch_loss_ / static_cast<double>(std::max<int64_t>(1, epoch_steps_))},
                      {"seconds", seconds_since(start)},
                      {"bad_images", bad_images()}};
  if (table_) {
    line["purity"] = purity_ >= 0 ? nlohmann::json(purity_) : nlohmann::json();
    line["churn"] = churn_ >= 0 ? nlohmann::json(churn_) : nlohmann::json();
  }
  write(line);
  ++at_.epoch;
  at_.batch = 0;
  const bool finished = at_.epoch == config_.train.epochs;
  const int knn_every = config_.eval.knn_every_epochs;
  if (knn_every > 0 && (at_.epoch % knn_every == 0 || finished)) evaluate();
  const int save_every = config_.train.checkpoint_every_epochs;
  if (finished || (save_every > 0 && at_.epoch % save_every == 0)) save(finished);
  return stop_agreed();
}

void Run::log_step(int64_t steps) {
  nlohmann::json line = method_->measure(steps);
  const double elapsed = seconds_since(interval_start_);
  const double per_second = static_cast<double>(steps * config_.train.batch_size) / std::max(1e-9, elapsed);
  result_.loss = line["loss"].get<double>();
  epoch_loss_ += result_.loss * static_cast<double>(steps);
  epoch_steps_ += steps;
  line["kind"] = "step";
  line["images_per_second"] = per_second;
  line["data_wait"] = interval_wait_ / std::max(1e-9, elapsed);
  line["memory_bytes"] = device_.stats().reserved;
  if (base_of(config_.method).negatives == Base::Negatives::queue) {
    const double each = static_cast<double>(config_.train.batch_size) * config_.method.directions;
    const double pushed = static_cast<double>(at_.step) * each, rows = static_cast<double>(config_.method.queue);
    line["queue_fill"] = std::min(1.0, pushed / rows);
    line["queue_age_steps"] = std::min(pushed, rows) / each;
  }
  const bool finite = line["finite"].get<bool>() && std::isfinite(result_.loss);
  write(line);
  interval_start_ = Clock::now();
  interval_wait_ = 0;
  non_finite_logs_ = finite ? 0 : non_finite_logs_ + 1;
  if (!finite) {
    log_warn(cat("step {}: the loss or a gradient is not finite; such steps change nothing", at_.step));
    event("non_finite", "loss or gradient not finite");
  }
  const bool at_floor = line.value("skipped_steps", 0) > 0 && line["loss_scale"] == config_.train.loss_scale.smallest;
  if (at_floor && !at_floor_) {
    log_warn(
        cat("step {}: the loss scale has fallen to train.loss_scale_min = {}: fp16 gradients overflow; use "
            "--precision bf16, or lower schedule.lr",
            at_.step, config_.train.loss_scale.smallest));
    event("loss_scale_floor", "the loss scale has fallen to train.loss_scale_min");
  }
  at_floor_ = at_floor;
  if (non_finite_logs_ >= 5)
    throw Error(
        cat("step {}: the loss has not been finite for {} log intervals; lower schedule.lr, or run with CSML_NAN=1 "
            "to name the op",
            at_.step, non_finite_logs_));
}

void Run::refresh_neighbors() {
  const Clock::time_point start = Clock::now();
  comm_.phase(cat("the neighbour search of epoch {}", at_.epoch));
  const int k = config_.method.neighbors;
  auto table = std::make_shared<NeighborTable>();
  std::vector<int> labels;
  if (config_.method.partner == "random") {  // the ablation: CutMix and cross terms with an arbitrary image
    table->k = k;
    const int64_t n = train_->size();
    for (int64_t i = 0; i < n; ++i) {
      Random random(config_.train.seed, Purpose::neighbor, static_cast<uint64_t>(at_.epoch), static_cast<uint64_t>(i),
                    1);
      for (int j = 0; j < k; ++j) {
        const auto other = static_cast<int64_t>(random.below(static_cast<uint32_t>(n - 1)));
        table->index.push_back(static_cast<int32_t>(other + (other >= i)));
      }
      labels.push_back(train_->label(i));
    }
  } else {
    FeatureOptions o = feature_options();
    o.on_bad_image = on_bad_image();
    const Features features = extract_features(device_, method_->key_encoder(), *train_, o);
    *table = nearest_neighbors(features.values, k, nullptr, comm_);
    labels = features.labels;
  }
  purity_ = neighbor_purity(*table, labels);
  churn_ = table_ ? neighbor_churn(*table_, *table) : -1;
  table_ = std::move(table);
  write({{"kind", "event"},
         {"event", "neighbors"},
         {"k", k},
         {"purity", purity_ >= 0 ? nlohmann::json(purity_) : nlohmann::json()},
         {"churn", churn_ >= 0 ? nlohmann::json(churn_) : nlohmann::json()},
         {"seconds", seconds_since(start)}});
}

void Run::evaluate() {
  if (!test_ || config_.eval.knn_every_epochs <= 0 || !train_->has_labels() || !test_->has_labels()) return;
  const Clock::time_point start = Clock::now();
  if (!knn_train_) {
    auto limited = [](const std::string& spec, int64_t limit) {
      auto dataset = open_dataset(spec);
      if (limit > 0) dataset->limit(limit);
      return dataset;
    };
    knn_train_ = limited(config_.data.train, config_.eval.knn_train_limit);
    knn_test_ = limited(config_.data.test, config_.eval.knn_test_limit);
  }
  comm_.phase(cat("the k-NN evaluation after epoch {}", at_.epoch));
  const FeatureOptions o = feature_options();
  const Encoder& encoder = method_->query_encoder();
  const Features bank = extract_features(device_, encoder, *knn_train_, o);
  const Features queries = extract_features(device_, encoder, *knn_test_, o);
  const KnnResult knn = knn_classify(bank, queries, knn_train_->class_count(), {config_.eval.knn_k},
                                     config_.eval.knn_temperature, comm_)[0];
  result_.knn_top1 = knn.top1;
  write({{"kind", "eval"},
         {"task", "knn"},
         {"top1", knn.top1},
         {"top5", knn.top5},
         {"k", knn.k},
         {"temperature", knn.temperature},
         {"features", "backbone"},
         {"encoder", "q"},
         {"n_train", knn_train_->size()},
         {"n_test", knn_test_->size()},
         {"protocol", "online weighted k-NN, un-augmented images, running statistics"},
         {"seconds", seconds_since(start)}});
}

bool Run::save(bool required) {
  if (!writes_) {  // rank 0 keeps the folder; the next collective waits for it
    last_saved_ = at_.step;
    return true;
  }
  std::vector<NamedArray> model, state;
  for (NamedArray& a : to_host(method_->query_encoder().params(), "encoder_q.")) model.push_back(std::move(a));
  for (NamedArray& a : to_host(method_->key_encoder().params(), "encoder_k.")) model.push_back(std::move(a));
  for (const auto& [name, tensor] : method_->state()) state.push_back(download(name, tensor));
  if (table_) {
    NamedArray table{"neighbors", DType::i32, {static_cast<int64_t>(table_->index.size()) / table_->k, table_->k}, {}};
    const auto* bytes = reinterpret_cast<const std::byte*>(table_->index.data());
    table.data.assign(bytes, bytes + table_->index.size() * sizeof(int32_t));
    state.push_back(std::move(table));
  }
  CheckpointContent content;
  content.step = at_.step;
  content.epoch = at_.epoch;
  content.model = views_of(model);
  content.state = views_of(state);
  content.model_metadata = {{"format", "pt"}};
  content.user = {{"config", to_json(config_)}, {"in_channels", train_->channels()},
                  {"batch", at_.batch},         {"data_fingerprint", cat("{:016x}", train_->fingerprint())},
                  {"purity", purity_},          {"churn", churn_}};
  const int every = config_.train.milestone_every_epochs;
  content.milestone = at_.batch == 0 && at_.epoch > 0 && every > 0 && at_.epoch % every == 0;
  try {
    result_.checkpoint = store_->save(content);
    last_saved_ = at_.step;
    return true;
  } catch (const Error& e) {
    if (required) throw;
    log_warn(cat("{}; training goes on, the next checkpoint tries again", e.what()));
    event("checkpoint_failed", e.what());
    return false;
  }
}

void Run::resume() {
  comm_.phase("the start");
  check_same_data();
  if (writes_) read_checkpoint();
  share_state();
  if (writes_) events_.emplace(options_.out / "tensorboard", metrics_->path());
  if (last_saved_ < 0) return;
  log_info(cat("resuming from {}: step {}, epoch {}", result_.checkpoint.string(), at_.step, at_.epoch));
  event("resumed", result_.checkpoint.filename().string());
}

/// Every process must draw the same images from the same numbers.
void Run::check_same_data() {
  const std::vector<std::string> prints = gather_text(comm_, device_, cat("{:016x}", train_->fingerprint()));
  for (size_t r = 1; r < prints.size(); ++r)
    if (prints[r] != prints[0])
      throw Error(cat("rank {} sees other images than rank 0 under data.train = {}: every process needs the same data",
                      r, config_.data.train));
}

/// Rank 0's state on every process: only rank 0 needs to see the run's folder.
void Run::share_state() {
  if (comm_.size() == 1) return;
  for (Encoder* encoder : {&method_->query_encoder(), &method_->key_encoder()}) {
    comm_.broadcast(encoder->params().master(), 0);
    comm_.broadcast(encoder->params().buffers(), 0);
    encoder->params().update_compute();
  }
  for (const auto& [name, tensor] : method_->state()) comm_.broadcast(tensor, 0);
  const nlohmann::json mine{{"step", at_.step},
                            {"epoch", at_.epoch},
                            {"batch", at_.batch},
                            {"purity", purity_},
                            {"churn", churn_},
                            {"saved", last_saved_},
                            {"k", table_ ? table_->k : 0},
                            {"checkpoint", result_.checkpoint.string()}};
  const nlohmann::json root = nlohmann::json::parse(broadcast_text(comm_, device_, mine.dump()));
  at_ = {root["step"].get<int64_t>(), root["epoch"].get<int64_t>(), root["batch"].get<int64_t>()};
  purity_ = root["purity"].get<double>();
  churn_ = root["churn"].get<double>();
  last_saved_ = root["saved"].get<int64_t>();
  result_.checkpoint = root["checkpoint"].get<std::string>();
  const int k = root["k"].get<int>();
  if (k == 0) return;
  const Tensor index(device_, {train_->size(), k}, DType::i32);
  if (table_) index.upload(table_->index);
  comm_.broadcast(index, 0);
  auto table = std::make_shared<NeighborTable>();
  *table = {.index = index.host<int32_t>(), .k = k};
  table_ = std::move(table);
}

void Run::read_checkpoint() {
  std::optional<Checkpoint> checkpoint;
  if (!options_.resume_from.empty()) {
    namespace fs = std::filesystem;
    if (!fs::exists(options_.resume_from))
      throw Error(cat("--resume {}: no such folder", options_.resume_from.string()));
    if (fs::exists(options_.resume_from / "manifest.json")) {
      checkpoint = open_checkpoint(options_.resume_from);
    } else {
      checkpoint = newest_checkpoint(options_.resume_from, [](const std::string& l) { log_warn(l); });
    }
    if (!checkpoint) throw Error(cat("--resume {}: no good checkpoint there", options_.resume_from.string()));
  } else if (options_.resume == ResumeMode::automatic) {
    checkpoint = store_->load_newest();
  }
  if (!checkpoint) {
    if (!options_.init_from.empty()) init_weights(options_.init_from);
    return;
  }
  const std::string fingerprint = cat("{:016x}", train_->fingerprint());
  const std::string had = checkpoint->user.value("data_fingerprint", std::string());
  if (had != fingerprint)
    throw Error(
        cat("{}: written while training on other data (fingerprint {}, now {}); give the same --data or a new --out",
            checkpoint->folder.string(), had, fingerprint));
  const SafetensorsFile model = checkpoint->model(), state = checkpoint->state();
  std::vector<NamedArray> arrays;
  for (const std::string& name : model.names()) arrays.push_back(model.read(name));
  from_host(method_->query_encoder().params(), arrays, "encoder_q.");
  from_host(method_->key_encoder().params(), arrays, "encoder_k.");
  for (const auto& [name, tensor] : method_->state()) restore(state, name, tensor);
  if (state.contains("neighbors")) {
    const ArrayInfo& info = state.info("neighbors");
    auto table = std::make_shared<NeighborTable>();
    if (info.dtype != DType::i32 || info.shape.rank() != 2 || info.shape[0] != train_->size())
      throw Error(cat("{}: its neighbour table has shape {} for {} images", state.path().string(), info.shape.text(),
                      train_->size()));
    table->k = static_cast<int>(info.shape[1]);
    table->index.resize(info.bytes / sizeof(int32_t));
    state.read("neighbors", table->index.data(), info.bytes);
    table_ = std::move(table);
  }
  at_ = {checkpoint->step, checkpoint->epoch, checkpoint->user.value("batch", int64_t{0})};
  purity_ = checkpoint->user.value("purity", -1.0);
  churn_ = checkpoint->user.value("churn", -1.0);
  last_saved_ = at_.step;
  result_.checkpoint = checkpoint->folder;
  metrics_->truncate_after_step(at_.step);
}

void Run::init_weights(const std::filesystem::path& path) {
  const SafetensorsFile file = SafetensorsFile::open(path);
  int channels = 0;
  bool has_head = false;
  const ModelConfig there = recognise_model(file, "", &channels, &has_head);
  has_head = has_head && there.dim == config_.model.dim;
  load_torchvision(method_->query_encoder(), file, has_head);
  load_torchvision(method_->key_encoder(), file, has_head);
  log_info(cat("both encoders start from {}{}", path.string(), has_head ? "" : " (backbone; the heads start anew)"));
}

}  // namespace

RunResult pretrain(Device& device, Comm& comm, const Config& config, const RunOptions& options) {
  return Run(device, comm, config, options).go();
}

std::string plan_text(const Config& config) {
  const auto train = open_dataset(config.data.train);
  const auto device = Device::open("cpu");
  const Encoder encoder(*device, config.model, train->channels(), config.train.seed, true, encoder_parts(config));
  const int64_t parameters = encoder.params().count();
  const int64_t size = config.augment.crop_size, batch = config.train.batch_size;
  const Base& base = base_of(config.method);
  const Plan plan = plan_of(config);
  const std::vector<Level> levels = levels_of(config);
  std::set<int> trained;  // slots that pass the trained encoder
  for (const Plan::Term& term : plan.terms) {
    trained.insert(term.anchor);
    if (!base.momentum_encoder) trained.insert(term.keys.begin(), term.keys.end());
  }
  double query_forwards = 0;  // in units of a full view
  for (const int slot : trained) {
    const int view = plan.slots[static_cast<size_t>(slot)].view;
    const int side = view < 0 ? config.augment.crop_size : plan.views[static_cast<size_t>(view)].augment.crop_size;
    query_forwards += static_cast<double>(side) * side / (static_cast<double>(size) * static_cast<double>(size));
  }
  // What a query forward keeps for backward, measured on two images and scaled.
  double activations = 0;
  {
    constexpr int64_t kSample = 2;
    const size_t before = device->stats().in_use;
    const Tensor images = Tensor::full(*device, {kSample, size, size, train->channels()}, 0.5f);
    const Stages stages = encoder.trunk(Var(images), {});
    std::vector<Var> embedded{encoder.project(stages.pooled, {})};
    for (const Level& level : levels)
      if (level.stage != Encoder::kTop)
        embedded.push_back(encoder.head(level.stage, stages.stage[static_cast<size_t>(level.stage)], {}));
    activations = static_cast<double>(device->stats().in_use - before) * static_cast<double>(batch) / kSample;
  }
  const double mib = 1048576.0;
  const double state = static_cast<double>(parameters) * 4 * 4 / mib;  // q, k, gradient, momentum
  const auto queues = static_cast<int64_t>(base.negatives == Base::Negatives::queue ? levels.size() : 0);
  const double queue = static_cast<double>(queues * config.method.queue * config.model.dim) * 4 / mib;
  const int64_t steps = train->size() / batch;
  std::string text;
  text += cat("data        {}\n", train->describe());
  text += cat("steps       {} per epoch, {} in {} epochs\n", steps, steps * config.train.epochs, config.train.epochs);
  text += cat("parameters  {:.2f} M; encoders, gradient and momentum {:.1f} MiB\n",
              static_cast<double>(parameters) / 1e6, state);
  if (queues > 0)
    text += cat("queue       {} x {}{}: {:.1f} MiB\n", config.method.queue, config.model.dim,
                queues > 1 ? cat(" for each of {} levels", queues) : "", queue);
  text += cat("activations {:.3g} query forward{} of {}: {:.1f} MiB kept for backward\n", query_forwards,
              query_forwards == 1 ? "" : "s", batch, activations * query_forwards / mib);
  text +=
      cat("total       about {:.1f} MiB of device memory\n", state + queue + activations * query_forwards / mib * 1.15);
  return text;
}

}  // namespace csml
