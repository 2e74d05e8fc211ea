#include "csml/training/train_loop.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <optional>
#include <thread>
#include <utility>

#include "csml/evaluation/probe_knn.h"
#include "csml/method/batch_layout.h"
#include "csml/training/refresh.h"
#include "csml/training/run_log.h"
#include "csml/training/run_state.h"
#include "csml/training/steps_in_flight.h"
#include "engine/checkpoint_writer.h"
#include "engine/file.h"
#include "engine/json.h"

namespace csml {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

bool lies_in(const std::filesystem::path& path, const std::filesystem::path& folder) {
  const auto inner = std::filesystem::weakly_canonical(path), outer = std::filesystem::weakly_canonical(folder);
  return std::mismatch(outer.begin(), outer.end(), inner.begin(), inner.end()).first == outer.end();
}

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
        log_(options.out, device, comm, state_.at),
        steps_(device, comm, state_, log_,
               {.out = options.out, .most = options.steps_in_flight, .phase = [this](const std::string& text) {
                  phase(text);
                }}) {
    if (comm.rank() == 0) {
      store_.emplace(options.out, CheckpointStore::Options{.keep_last = config.train.keep_checkpoints,
                                                           .warn = [](const std::string& l) { log_warn(l); }});
      writer_.emplace(config.train.checkpoint_retry_seconds);
    }
    if (!config.data.test.empty()) test_ = open_dataset(config.data.test);
    if (!probed() && comm.rank() == 0) log_info(no_probe_text());
    if (probed() && train_->has_labels())
      test_->use_classes_of(*train_);  // refused now, before anything is written, rather than at the first k-NN
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
  void settle();
  void begin_line(int64_t steps);
  void end_line();
  void log_epoch(double seconds);
  bool refresh_neighbors();
  void evaluate();
  void measure_knn();
  void open_probe();
  void note_best();
  void keep_best(const std::filesystem::path& checkpoint);
  void read_best();
  void start_saving();
  void finish_saving();
  void tell_saved();
  bool stop_asked();
  bool stop_agreed();
  void phase(const std::string& text);
  int64_t bad_images() const { return log_.bad_images(*loader_); }
  /// Whether the online k-NN is measured.
  bool probed() const { return test_ && config_.eval.knn_every_epochs > 0 && test_->has_labels(); }
  std::string no_probe_text() const {
    if (!test_) return "no k-NN during training: --probe SPEC names labelled images for it";
    if (config_.eval.knn_every_epochs <= 0) return "no k-NN during training: eval.knn_every_epochs is 0";
    return cat("no k-NN during training: {} has no labels; --probe SPEC names images that have", config_.data.test);
  }
  bool out_of_steps() const { return config_.train.max_steps > 0 && at_.step >= config_.train.max_steps; }

  Device& device_;
  Comm& comm_;
  const Config& config_;
  const RunOptions& options_;
  std::unique_ptr<Dataset> train_, test_, knn_train_, knn_test_;
  std::unique_ptr<Method> method_;
  RunState state_;
  Position& at_ = state_.at;
  std::optional<CheckpointStore> store_;    // rank 0's
  StateCopy copy_;                          // what the writer writes
  std::optional<CheckpointWriter> writer_;  // rank 0's; after what it uses
  RunLog log_;
  StepsInFlight steps_;
  std::unique_ptr<Loader> loader_;
  int64_t steps_per_epoch_ = 0;
  bool at_floor_ = false;  // of the loss scale
  std::optional<Progress> progress_;
  RunResult result_;
  int64_t best_step_ = -1;  // whose checkpoint is to be kept as best; -1: none
  Clock::time_point start_ = Clock::now();
  bool out_of_time_ = false;
  /// A line of metrics.jsonl whose numbers are on their way from the device.
  struct StepLine {
    Position at;
    int64_t steps = 0;
  };
  std::optional<StepLine> line_;
  // Since the last step line
  Clock::time_point interval_start_;
  double interval_wait_ = 0;
  double epoch_loss_ = 0;
  int64_t epoch_steps_ = 0;
};

void Run::phase(const std::string& text) {
  comm_.phase(text);
  if (options_.phase) options_.phase(text);
}

/// This process, now.
bool Run::stop_asked() {
  const double limit = config_.train.max_hours * 3600;
  out_of_time_ = out_of_time_ || (limit > 0 && seconds_since(start_) >= limit);
  return out_of_time_ || (options_.stop && options_.stop->load());
}

/// Any process, now. Between steps: a step carries its vote itself.
bool Run::stop_agreed() {
  const bool asked = stop_asked();
  if (comm_.size() == 1) return asked;
  const Tensor vote = Tensor::from(device_, {1}, std::vector<int32_t>{asked ? 1 : 0});
  comm_.all_reduce_max(vote);
  return vote.host<int32_t>()[0] != 0;
}

RunResult Run::go() {
  loader_ =
      std::make_unique<Loader>(*train_, method_->views(), training_loader_options(config_, comm_, log_.on_bad_image()));
  resume();
  log_info(cat("training {} on {}: {} epochs of {} steps, batch {}, {} parameters, device {}{}", config_.method.name,
               train_->describe(), config_.train.epochs, steps_per_epoch_, config_.train.batch_size,
               method_->query_encoder().params().count(), device_.name(),
               comm_.size() > 1
                   ? cat(", {} processes of {} images", comm_.size(), config_.train.batch_size / comm_.size())
                   : ""));
  const int64_t total = int64_t{config_.train.epochs} * steps_per_epoch_;
  progress_.emplace("pretrain", config_.train.max_steps > 0 ? std::min<int64_t>(total, config_.train.max_steps) : total,
                    "steps", at_.step);

  const bool begins = at_.step == 0;
  if (begins || state_.evaluation_due) evaluate();  // the untrained encoder is the first point of the curve
  if (begins) {
    start_saving();
    if (writer_) writer_->finish();  // finds out now, not in an hour, whether the folder takes a checkpoint
  } else if (best_step_ >= 0) {
    start_saving();
  }
  bool stop = stop_agreed();
  try {
    while (at_.epoch < config_.train.epochs && !stop && !out_of_steps()) stop = train_epoch();
  } catch (...) {
    try {
      end_line();  // what was known before
    } catch (const Error&) {}
    throw;
  }
  settle();
  progress_->finish();
  result_.stopped = stop && (at_.epoch < config_.train.epochs || state_.evaluation_due);
  phase("the last checkpoint");
  log_.share_bad_images();
  finish_saving();
  if (result_.stopped)
    log_.event("stopped", cat("{}; the same command goes on",
                              out_of_time_ ? "train.max_hours are over" : "a signal asked the run to stop"));
  result_.non_finite = steps_.non_finite();
  result_.steps = at_.step;
  result_.epochs = at_.epoch;
  result_.bad_images = bad_images();
  result_.seconds = seconds_since(start_);
  return result_;
}

/// True when the run is asked to end.
bool Run::train_epoch() {
  const Clock::time_point start = Clock::now();
  if (state_.refresh_due() && !refresh_neighbors()) return true;
  CHECK(!method_->needs_neighbors() || state_.neighbors, "the checkpoint holds no neighbour table");
  loader_->start_epoch(at_.epoch, at_.batch, state_.neighbors);
  epoch_loss_ = 0;
  epoch_steps_ = 0;
  int64_t since_log = 0;
  interval_start_ = Clock::now();
  interval_wait_ = 0;
  Batch batch;
  phase(cat("the loading of step {}", at_.step + 1));
  while (loader_->next(batch)) {
    interval_wait_ += batch.wait_seconds;
    phase(cat("step {}", at_.step + 1));
    steps_.start(batch, stop_asked());
    end_line();
    ++since_log;
    const bool last = at_.batch == steps_per_epoch_;
    if (at_.step % config_.train.log_every_steps == 0 || last) {
      begin_line(since_log);
      since_log = 0;
    }
    progress_->update(at_.step,
                      cat("epoch {} loss {}{}{}", at_.epoch, result_.loss ? cat("{:.3f}", *result_.loss) : "-",
                          result_.knn_top1 >= 0 ? cat("  k-NN {:.1f} %", result_.knn_top1) : "",
                          bad_images() ? cat("  {} bad images", bad_images()) : ""));
    const int every = config_.train.checkpoint_every_steps;
    if (every > 0 && at_.step % every == 0 && !last) start_saving();
    tell_saved();
    const bool stop = comm_.size() == 1 ? stop_asked() : steps_.stop_seen();
    if ((stop || out_of_steps()) && !last) {
      if (since_log > 0) begin_line(since_log);  // what these steps showed; settle() writes it
      return stop;
    }
    phase(cat("the loading of step {}", at_.step + 1));
  }
  phase(cat("the end of epoch {}", at_.epoch));
  settle();
  log_.share_bad_images();
  log_epoch(seconds_since(start));
  ++at_.epoch;
  at_.batch = 0;
  const bool finished = at_.epoch == config_.train.epochs;
  const int knn_every = config_.eval.knn_every_epochs;
  if (knn_every > 0 && (at_.epoch % knn_every == 0 || finished)) evaluate();
  const int save_every = config_.train.checkpoint_every_epochs;
  if (finished || best_step_ == at_.step || (save_every > 0 && at_.epoch % save_every == 0)) start_saving();
  return stop_agreed();
}

void Run::log_epoch(double seconds) {
  nlohmann::json line{{"kind", "epoch"},
                      {"loss", epoch_loss_ / static_cast<double>(std::max<int64_t>(1, epoch_steps_))},
                      {"seconds", seconds},
                      {"bad_images", bad_images()}};
  if (state_.neighbors) {
    line["purity"] = state_.purity >= 0 ? nlohmann::json(state_.purity) : nlohmann::json();
    line["churn"] = state_.churn >= 0 ? nlohmann::json(state_.churn) : nlohmann::json();
  }
  log_.write(std::move(line));
}

/// Waits for every step that was started, and for its line.
void Run::settle() {
  steps_.settle_all();
  end_line();
}

/// A line about the last `steps` steps. The device notes its numbers behind them and goes on; end_line() writes it.
void Run::begin_line(int64_t steps) {
  method_->begin_measure(steps);
  line_ = {.at = at_, .steps = steps};
  if (steps_.unsettled() == 0) end_line();
}

/// Writes the line that was begun, if there is one. Its steps are settled: those after it are not waited for.
void Run::end_line() {
  if (!line_) return;
  const StepLine about = *std::exchange(line_, std::nullopt);
  nlohmann::json line = method_->end_measure();
  line["finite"] = steps_.take_all_finite();
  const double elapsed = seconds_since(interval_start_);
  interval_start_ = Clock::now();
  result_.loss = line["loss"].get<double>();
  epoch_loss_ += *result_.loss * static_cast<double>(about.steps);
  epoch_steps_ += about.steps;
  line["kind"] = "step";
  line["images_per_second"] = static_cast<double>(about.steps * config_.train.batch_size) / std::max(1e-9, elapsed);
  line["data_wait"] = std::exchange(interval_wait_, 0) / std::max(1e-9, elapsed);
  line["memory_bytes"] = device_.stats().reserved;
  line["skipped_steps"] = line.value("skipped_steps", int64_t{0}) + state_.skipped;
  if (base_of(config_.method).queue) {
    const double each = static_cast<double>(config_.train.batch_size) * config_.method.directions;
    const double pushed = static_cast<double>(about.at.step) * each, rows = static_cast<double>(config_.method.queue);
    line["queue_fill"] = std::min(1.0, pushed / rows);
    line["queue_age_steps"] = std::min(pushed, rows) / each;
  }
  const bool at_floor = line.contains("loss_scale") && line["skipped_steps"] > 0 &&
                        line["loss_scale"] == config_.train.loss_scale.smallest;
  log_.write(std::move(line), about.at);
  if (at_floor && !at_floor_) {
    log_warn(
        cat("step {}: the loss scale has fallen to train.loss_scale_min = {}: fp16 gradients overflow; use "
            "--precision bf16, or lower schedule.lr",
            about.at.step, config_.train.loss_scale.smallest));
    log_.event("loss_scale_floor", "the loss scale has fallen to train.loss_scale_min");
  }
  at_floor_ = at_floor;
}

/// False when the run is asked to end meanwhile; the state is then what it was.
bool Run::refresh_neighbors() {
  const Clock::time_point start = Clock::now();
  phase(cat("the neighbour search of epoch {}", at_.epoch));
  try {
    find_neighbors(device_, comm_, state_, log_.on_bad_image(), [this] { return !stop_agreed(); });
  } catch (const Interrupted&) { return false; }
  if (progress_) progress_->leave_out(seconds_since(start));
  log_.write({{"kind", "event"},
              {"event", "neighbors"},
              {"k", config_.method.neighbors},
              {"purity", state_.purity >= 0 ? nlohmann::json(state_.purity) : nlohmann::json()},
              {"churn", state_.churn >= 0 ? nlohmann::json(state_.churn) : nlohmann::json()},
              {"seconds", seconds_since(start)}});
  return true;
}

/// The online k-NN, where the run has one; due again after a resumption when the run is asked to end meanwhile.
void Run::evaluate() {
  if (std::exchange(state_.evaluation_due, false)) state_.saved = -1;
  try {
    measure_knn();
  } catch (const Interrupted&) { state_.evaluation_due = true; }
}

/// The bank and the queries of the online k-NN. Where the training images have labels, the bank is of these. Else the
/// probe's images are both: a fifth of every class asks, the rest answers.
void Run::open_probe() {
  const auto limited = [](const std::string& spec, int64_t limit) {
    auto dataset = open_dataset(spec);
    if (limit > 0) dataset->limit(limit);
    return dataset;
  };
  const std::string& test = config_.data.test;
  const bool split = !train_->has_labels();
  if (split && test.find("holdout=") != std::string::npos)
    throw UsageError(
        cat("{}: the training images have no labels, so that the probe is split into bank and queries; "
            "name it without holdout=",
            test));
  const std::string cut = cat("{}{}holdout=20%&part=", test, test.find('?') == std::string::npos ? "?" : "&");
  knn_train_ = limited(split ? cut + "rest" : config_.data.train, config_.eval.knn_train_limit);
  knn_test_ = limited(split ? cut + "holdout" : test, config_.eval.knn_test_limit);
  if (knn_train_->size() == 0 || knn_test_->size() == 0)
    throw UsageError(cat("{}: too few images for a probe; each class needs at least five", test));
  knn_test_->use_classes_of(*knn_train_);
}

/// The best state so far is saved whatever the interval of checkpoints, and kept.
void Run::note_best() {
  if (result_.knn_top1 <= result_.best_top1) return;
  result_.best_top1 = result_.knn_top1;
  result_.best_epoch = at_.epoch;
  best_step_ = at_.step;
}

/// RUN/best: the checkpoint (links to its files where the file system has them), with best.json.
void Run::keep_best(const std::filesystem::path& checkpoint) {
  namespace fs = std::filesystem;
  const fs::path best = options_.out / "best", part = options_.out / "best.part";
  try {
    fs::remove_all(part);
    std::error_code no_links;
    fs::copy(checkpoint, part, fs::copy_options::recursive | fs::copy_options::create_hard_links, no_links);
    if (no_links) fs::copy(checkpoint, part, fs::copy_options::recursive | fs::copy_options::overwrite_existing);
    const nlohmann::json about{
        {"top1", result_.best_top1}, {"epoch", result_.best_epoch}, {"step", best_step_}, {"probe", config_.data.test}};
    write_text_file(part / "best.json", about.dump() + "\n");
    fs::remove_all(best);
    fs::rename(part, best);
    log_.event("best",
               cat("epoch {}: online k-NN {:.2f} %, kept in {}", result_.best_epoch, result_.best_top1, best.string()));
  } catch (const std::exception& e) {
    log_warn(cat("the best checkpoint could not be kept ({}); training goes on", e.what()));
  }
  best_step_ = -1;
}

/// The best of an earlier start, unless it lies after the step that this one goes on from.
void Run::read_best() {
  const std::filesystem::path file = options_.out / "best" / "best.json";
  if (!std::filesystem::exists(file)) return;
  constexpr size_t kMostBytes = 1 << 16;
  const nlohmann::json about = parse_json(read_text_file(file, kMostBytes));
  if (!about.is_object() || !about.value("top1", nlohmann::json()).is_number() ||
      !about.value("epoch", nlohmann::json()).is_number_integer() ||
      !about.value("step", nlohmann::json()).is_number_integer() || about["step"].get<int64_t>() > at_.step)
    return;
  result_.best_top1 = about["top1"].get<double>();
  result_.best_epoch = about["epoch"].get<int64_t>();
}

void Run::measure_knn() {
  if (!probed()) return;
  const Clock::time_point start = Clock::now();
  if (!knn_train_) open_probe();
  phase(cat("the k-NN evaluation after epoch {}", at_.epoch));
  FeatureOptions o = online_feature_options(config_, comm_);
  o.go_on = [this] { return !stop_agreed(); };
  const Encoder& encoder = method_->query_encoder();
  const Features bank = extract_features(device_, encoder, *knn_train_, o);
  const Features queries = extract_features(device_, encoder, *knn_test_, o);
  const KnnResult knn = knn_classify(bank, queries, knn_train_->class_count(),
                                     {static_cast<int>(std::min<int64_t>(config_.eval.knn_k, knn_train_->size()))},
                                     config_.eval.knn_temperature, comm_)[0];
  result_.knn_top1 = knn.top1;
  note_best();
  if (progress_) progress_->leave_out(seconds_since(start));
  log_.write({{"kind", "eval"},
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

/// Hands the state to the writer. A write in progress is waited for first: two at once would need two copies.
void Run::start_saving() {
  settle();
  state_.saved = at_.step;
  if (!writer_) return;  // rank 0 keeps the folder
  phase(cat("the writing of a checkpoint before that of step {}", at_.step));
  const double waited = writer_->acquire();
  if (waited > 1) {
    const std::string text =
        cat("the checkpoint of step {} waited {:.1f} s for the one before to be written", at_.step, waited);
    log_info(text);
    log_.event("checkpoint_waited", text);
  }
  copy_.take(state_);
  writer_->start(copy_.step(), [this] { return store_->save(copy_.content().checkpoint); });
  phase(cat("step {}", at_.step));
}

/// The state of now on disk, or an Error; a failing disk gets another chance.
void Run::finish_saving() {
  constexpr int kTries = 3;
  for (int tries = 1;; ++tries) {
    if (state_.saved != at_.step) start_saving();
    if (!writer_) return;
    try {
      writer_->finish();
      tell_saved();
      return;
    } catch (const Error&) {
      state_.saved = -1;
      if (tries == kTries) throw;
      tell_saved();
      std::this_thread::sleep_for(std::chrono::seconds(1));
    }
  }
}

/// What became of checkpoints since the last call.
void Run::tell_saved() {
  if (!writer_) return;
  for (const CheckpointWriter::Outcome& o : writer_->outcomes()) {
    if (!o.folder.empty()) {
      result_.checkpoint = o.folder;
      if (best_step_ >= 0 && o.step == best_step_) keep_best(o.folder);
      continue;
    }
    log_warn(cat("{}; training goes on, a checkpoint is tried again", o.error));
    log_.event("checkpoint_failed", o.error);
  }
}

void Run::resume() {
  phase("the start");
  check_same_data();
  if (store_) read_checkpoint();
  state_.share(device_, comm_);
  log_.begin_events();
  if (state_.saved < 0) return;
  if (comm_.rank() == 0) read_best();
  log_info(cat("resuming from {}: step {}, epoch {}", result_.checkpoint.string(), at_.step, at_.epoch));
  log_.event("resumed", result_.checkpoint.filename().string());
}

/// Every process must draw the same images from the same numbers.
void Run::check_same_data() {
  const std::vector<std::string> prints = gather_text(comm_, device_, state_.fingerprint);
  for (size_t r = 1; r < prints.size(); ++r)
    if (prints[r] != prints[0])
      throw Error(cat("rank {} sees other images than rank 0 under data.train = {}: every process needs the same data",
                      r, config_.data.train));
}

void Run::read_checkpoint() {
  namespace fs = std::filesystem;
  const Warn warn = [](const std::string& l) { log_warn(l); };
  std::optional<Checkpoint> checkpoint;
  // The same command again goes on with what it has written since it left the other run.
  const bool elsewhere = !options_.resume_from.empty() && !lies_in(options_.resume_from, options_.out);
  if (elsewhere) checkpoint = store_->load_newest();
  if (checkpoint) {
    log_info(cat("{} has checkpoints of its own, which are newer than {}", options_.out.string(),
                 options_.resume_from.string()));
  } else if (!options_.resume_from.empty()) {
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
  log_.drop_after(at_.step);
}

}  // namespace

RunResult pretrain(Device& device, Comm& comm, const Config& config, const RunOptions& options) {
  return Run(device, comm, config, options).go();
}

}  // namespace csml
