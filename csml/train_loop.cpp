#include "csml/train_loop.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <optional>

#include "csml/batch_layout.h"
#include "csml/neighbors.h"
#include "csml/probe_knn.h"
#include "csml/refresh.h"
#include "csml/run_log.h"
#include "csml/run_state.h"
#include "engine/step.h"

namespace csml {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

class Run {
 public:
  Run(Device& device, Comm& comm, const Config& config, const RunOptions& options)
      : device_(device),
        comm_(comm),
        config_(config),
        options_(options),
        train_(open_dataset(config.data.train)),
        method_(make_method(device, config, train_->channels(), comm)),
        state_(config, *train_, *method_),
        step_(
            device, [this] { method_->step(); }, comm.recordable() ? 1 : std::numeric_limits<int>::max()) {
    if (comm.rank() == 0)
      store_.emplace(options.out, CheckpointStore::Options{.keep_last = config.train.keep_checkpoints,
                                                           .warn = [](const std::string& l) { log_warn(l); }});
    log_.emplace(options.out, device, comm, state_.at);
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
  void resume();
  void read_checkpoint();
  void check_same_data();
  bool train_epoch();
  void log_step(int64_t steps);
  void refresh_neighbors();
  void evaluate();
  bool save(bool required);
  bool stop_agreed();
  int64_t bad_images() const { return log_->bad_images(*loader_); }
  bool out_of_steps() const { return config_.train.max_steps > 0 && at_.step >= config_.train.max_steps; }

  Device& device_;
  Comm& comm_;
  const Config& config_;
  const RunOptions& options_;
  std::unique_ptr<Dataset> train_, test_, knn_train_, knn_test_;
  std::unique_ptr<Method> method_;
  RunState state_;
  Position& at_ = state_.at;
  std::optional<CheckpointStore> store_;  // rank 0's
  StateCopy copy_;
  std::optional<RunLog> log_;
  Step step_;
  std::unique_ptr<Loader> loader_;
  int64_t steps_per_epoch_ = 0;
  int non_finite_logs_ = 0;
  std::optional<Progress> progress_;
  RunResult result_;
  // Since the last step line
  Clock::time_point interval_start_;
  double interval_wait_ = 0;
  double epoch_loss_ = 0;
  int64_t epoch_steps_ = 0;
};

bool Run::stop_agreed() {
  const bool asked = options_.stop && options_.stop->load();
  if (comm_.size() == 1) return asked;
  const Tensor vote = Tensor::from(device_, {1}, std::vector<int32_t>{asked ? 1 : 0});
  comm_.all_reduce_max(vote);
  return vote.host<int32_t>()[0] != 0;
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
  lo.on_bad_image = log_->on_bad_image();
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
  log_->share_bad_images();
  if (state_.saved != at_.step) save(true);
  if (result_.stopped) log_->event("stopped", "a signal asked the run to stop; the same command goes on");
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
  CHECK(!method_->needs_neighbors() || state_.neighbors, "the checkpoint holds no neighbour table");
  loader_->start_epoch(at_.epoch, at_.batch, state_.neighbors);
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
  log_->share_bad_images();
  nlohmann::json line{{"kind", "epoch"},
                      {"loss", epoch_loss_ / static_cast<double>(std::max<int64_t>(1, epoch_steps_))},
                      {"seconds", seconds_since(start)},
                      {"bad_images", bad_images()}};
  if (state_.neighbors) {
    line["purity"] = state_.purity >= 0 ? nlohmann::json(state_.purity) : nlohmann::json();
    line["churn"] = state_.churn >= 0 ? nlohmann::json(state_.churn) : nlohmann::json();
  }
  log_->write(line);
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
  log_->write(std::move(line));
  interval_start_ = Clock::now();
  interval_wait_ = 0;
  non_finite_logs_ = finite ? 0 : non_finite_logs_ + 1;
  if (!finite) {
    log_warn(cat("step {}: the loss or a gradient is not finite; such steps change nothing", at_.step));
    log_->event("non_finite", "loss or gradient not finite");
  }
  if (non_finite_logs_ >= 5)
    throw Error(
        cat("step {}: the loss has not been finite for {} log intervals; lower schedule.lr, or run with CSML_NAN=1 "
            "to name the op",
            at_.step, non_finite_logs_));
}

void Run::refresh_neighbors() {
  const Clock::time_point start = Clock::now();
  comm_.phase(cat("the neighbour search of epoch {}", at_.epoch));
  find_neighbors(device_, comm_, state_, log_->on_bad_image());
  log_->write({{"kind", "event"},
               {"event", "neighbors"},
               {"k", config_.method.neighbors},
               {"purity", state_.purity >= 0 ? nlohmann::json(state_.purity) : nlohmann::json()},
               {"churn", state_.churn >= 0 ? nlohmann::json(state_.churn) : nlohmann::json()},
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
  const FeatureOptions o = online_feature_options(config_, comm_);
  const Encoder& encoder = method_->query_encoder();
  const Features bank = extract_features(device_, encoder, *knn_train_, o);
  const Features queries = extract_features(device_, encoder, *knn_test_, o);
  const KnnResult knn = knn_classify(bank, queries, knn_train_->class_count(), {config_.eval.knn_k},
                                     config_.eval.knn_temperature, comm_)[0];
  result_.knn_top1 = knn.top1;
  log_->write({{"kind", "eval"},
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
  state_.saved = at_.step;
  if (!store_) return true;  // rank 0 keeps the folder; the next collective waits for it
  copy_.take(state_);
  try {
    result_.checkpoint = store_->save(copy_.content().checkpoint);
    return true;
  } catch (const Error& e) {
    if (required) throw;
    state_.saved = -1;
    log_warn(cat("{}; training goes on, the next checkpoint tries again", e.what()));
    log_->event("checkpoint_failed", e.what());
    return false;
  }
}

void Run::resume() {
  comm_.phase("the start");
  check_same_data();
  if (store_) read_checkpoint();
  state_.share(device_, comm_);
  log_->begin_events();
  if (state_.saved < 0) return;
  log_info(cat("resuming from {}: step {}, epoch {}", result_.checkpoint.string(), at_.step, at_.epoch));
  log_->event("resumed", result_.checkpoint.filename().string());
}

/// Every process must draw the same images from the same numbers.
void Run::check_same_data() {
  const std::vector<std::string> prints = gather_text(comm_, device_, cat("{:016x}", train_->fingerprint()));
  for (size_t r = 1; r < prints.size(); ++r)
    if (prints[r] != prints[0])
      throw Error(cat("rank {} sees other images than rank 0 under data.train = {}: every process needs the same data",
                      r, config_.data.train));
}

void Run::read_checkpoint() {
  namespace fs = std::filesystem;
  const Warn warn = [](const std::string& l) { log_warn(l); };
  std::optional<Checkpoint> checkpoint;
  if (!options_.resume_from.empty()) {
    if (!fs::exists(options_.resume_from))
      throw Error(cat("--resume {}: no such folder", options_.resume_from.string()));
    checkpoint = fs::exists(options_.resume_from / "manifest.json") ? open_checkpoint(options_.resume_from)
                                                                    : newest_checkpoint(options_.resume_from, warn);
    if (!checkpoint) throw Error(cat("--resume {}: no good checkpoint there", options_.resume_from.string()));
  } else if (options_.resume == ResumeMode::automatic) {
    checkpoint = store_->load_newest();
  }
  if (!checkpoint) {
    if (!options_.init_from.empty()) state_.start_from(options_.init_from);
    return;
  }
  state_.restore(*checkpoint);
  result_.checkpoint = checkpoint->folder;
  log_->drop_after(at_.step);
}

}  // namespace

RunResult pretrain(Device& device, Comm& comm, const Config& config, const RunOptions& options) {
  return Run(device, comm, config, options).go();
}

}  // namespace csml
