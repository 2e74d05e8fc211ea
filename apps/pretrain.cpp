// csml pretrain: one run, from the configuration to the last checkpoint.
#include "apps/chooser.h"
#include "apps/command.h"
#include "apps/config.h"
#include "apps/facts.h"
#include "apps/keys.h"
#include "apps/run_folder.h"
#include "apps/run_metrics.h"
#include "apps/same_start.h"
#include "apps/stop_signals.h"
#include "apps/verdict.h"
#include "csml/method/base.h"
#include "csml/method/resolve.h"
#include "csml/training/memory_plan.h"
#include "csml/training/train_loop.h"
#include "engine/file.h"
#include "engine/log.h"
#include "engine/timeline.h"

namespace csml {
namespace {

struct Options {
  CommonOptions common;
  std::vector<std::string> arguments;
  std::string preset, config, out, init_from, resume = "auto", help_keys;
  std::map<std::string, std::string> keys;  // flag -> value, where given
  std::vector<std::string> set;
  double hours = 0;  // 0: not given
  bool dry_run = false, overwrite = false, list_keys = false;
};

using Values = std::vector<std::pair<std::string, std::string>>;  // configuration keys and values

/// Presets and files, then environment and flags; between them what was chosen or what an earlier run resolved.
ResolvedConfig read_config(const Options& o, const Values& chosen = {}, const std::string& earlier = "") {
  ConfigBuilder builder;
  if (!o.preset.empty() && o.preset != "auto") builder.add_preset(o.preset);
  if (!earlier.empty()) builder.add_toml(read_text_file(earlier, 1 << 20), earlier, "chosen");
  for (const auto& [key, value] : chosen) builder.set(key, value, "chosen");
  if (!o.config.empty()) builder.add_file(o.config);
  builder.add_environment();
  for (const KeyFlag& flag : key_flags())
    if (const auto found = o.keys.find(flag.flag); found != o.keys.end())
      builder.set(flag.key, found->second, cat("flag {}", flag.flag));
  for (const std::string& assignment : o.set) builder.set_assignment(assignment);
  return builder.build();
}

/// Several lines of information.
void log_text(const std::string& text) {
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    log_info(text.substr(at, end - at));
    at = end + 1;
  }
}

/// The channels are the data's; a recipe need not know them.
void take_channels(ResolvedConfig& resolved, const Dataset& train) {
  if (resolved.config.augment.channels == train.channels()) return;
  resolved.config.augment.channels = train.channels();
  resolved.origin["augment.channels"] = "derived (the data's)";
}

/// Whether somebody said how to train, and not only what on, where and for how long.
bool says_recipe(const ResolvedConfig& resolved) {
  for (const auto& [key, origin] : resolved.origin) {
    if (origin == "default" || origin.starts_with("derived") || key == "method.name") continue;
    for (const char* part : {"augment.", "model.", "method.", "optimizer.", "schedule.", "train.epochs",
                             "train.batch_size", "train.accumulate", "train.max_steps", "eval."})
      if (key.starts_with(part)) return true;
  }
  return false;
}

bool wants_choice(const Options& o, const ResolvedConfig& resolved) {
  if (o.preset == "auto") return true;
  const bool alone = o.preset.empty() && o.config.empty() && !says_recipe(resolved);
  if (o.hours > 0 && !alone)
    throw UsageError(
        "--hours is what --preset auto chooses for; this recipe has its own length: see --epochs and --max-hours");
  return alone && !resolved.config.data.train.empty();
}

/// config.toml of the run that this command goes on with; empty where it starts one.
std::string earlier_choice(const Options& o) {
  namespace fs = std::filesystem;
  if (o.resume == "never" || o.overwrite) return "";
  const fs::path run = o.resume == "auto" ? o.out : o.resume;
  if (run.empty() || !fs::exists(run / "config.toml") || is_start_without_training(run)) return "";
  return (run / "config.toml").string();
}

/// The recipe for these images and this machine: chosen with a guess of the speed, then again with the speed of a step of
/// what was chosen, until that is the same network.
ResolvedConfig choose_config(const Options& o, const ResolvedConfig& asked, const Dataset& train, Device& device) {
  if (const std::string earlier = earlier_choice(o); !earlier.empty()) {
    log_info(cat("going on with the choice in {}", earlier));
    return read_config(o, {}, earlier);
  }
  constexpr double kDefaultHours = 1, kCpuGuess = 20e9, kCardGuess = 60e12;
  Facts facts = look_at(train, device, o.hours > 0 ? o.hours : kDefaultHours);
  if (asked.origin.at("method.name") != "default") facts.method = asked.config.method.name;
  facts.flop_per_second = facts.card ? kCardGuess : kCpuGuess;
  Chosen chosen = choose(facts);
  std::string measured;
  for (int tries = 0; tries < 3; ++tries) {
    const ResolvedConfig candidate = read_config(o, chosen.values);
    const Config& c = candidate.config;
    const std::string network =
        cat("{} {} {} {} {}", c.model.depth, c.model.width, c.model.stem, c.augment.crop_size, c.method.name);
    if (network == measured) break;
    measured = network;
    ResolvedConfig timed = candidate;
    take_channels(timed, train);
    facts.flop_per_second = measure_speed(device, timed.config, train);
    chosen = choose(facts);
  }
  log_text(chosen_text(chosen));
  return read_config(o, chosen.values);
}

int dry_run(const Options& o, const ResolvedConfig& resolved, const Dataset* train) {
  const std::string text = config_toml(resolved);
  const std::string plan = train ? plan_text(resolved.config) : "no plan: --data SPEC is not given\n";
  answer(o.common,
         {{"task", "dry-run"}, {"config", to_json(resolved.config)}, {"origin", resolved.origin}, {"plan", plan}},
         text + "\n" + plan);
  return 0;
}

/// By rank 0 alone: the folder is its business. Nothing in it is read or written before `lock` is held.
/// True where no run was there, or one that was removed: what is there then is this start's.
bool prepare_folder(const Options& o, const ResolvedConfig& resolved, const Device& device, const Comm& comm,
                    const Dataset& train, FolderLock& lock, RunOptions& run) {
  namespace fs = std::filesystem;
  if (!o.init_from.empty() && !fs::exists(o.init_from)) throw Error(cat("--init-from {}: no such file", o.init_from));
  const bool continues = o.resume != "auto" && o.resume != "never";
  run.resume = o.resume == "never" ? ResumeMode::never : ResumeMode::automatic;
  lock = FolderLock(run.out);
  if (holds_run(run.out) && o.overwrite) {
    log_info(cat("--overwrite: the run in {} is removed", o.out));
    clear_run(run.out);
  } else if (is_start_without_training(run.out)) {
    log_info(cat("{} holds a run that ended before its first checkpoint: it starts anew", o.out));
    clear_run(run.out);
  }
  if (holds_run(run.out)) {
    if (o.resume == "never")
      throw Error(cat("{} holds a run already; give another --out, or --overwrite to start anew", o.out));
    check_resumable(run.out, resolved.config);
  }
  if (continues) {
    if (!fs::is_directory(o.resume)) throw Error(cat("--resume {}: no such folder", o.resume));
    check_resumable(o.resume, resolved.config);
    run.resume_from = o.resume;
  }
  const bool fresh = !holds_run(run.out);
  describe_run(run.out, resolved, o.arguments, device, comm.size(), train);
  return fresh;
}

/// Removes what a start without a checkpoint wrote, and the folder where it made that.
void remove_start(const std::filesystem::path& out, bool had_folder) {
  try {
    clear_run(out);
  } catch (const Error& e) { log_warn(e.what()); }
  if (had_folder) return;
  std::error_code ignored;
  std::filesystem::remove(out / ".lock", ignored);
  std::filesystem::remove(out, ignored);  // where it is empty
}

nlohmann::json result_json(const Options& o, const Config& config, const RunResult& result) {
  const nlohmann::json knn = result.knn_top1 < 0 ? nlohmann::json() : nlohmann::json(result.knn_top1);
  return {{"task", "pretrain"},
          {"out", o.out},
          {"method", config.method.name},
          {"steps", result.steps},
          {"epochs", result.epochs},
          {"loss", result.loss ? nlohmann::json(*result.loss) : nlohmann::json()},
          {"non_finite_last_steps", result.non_finite},
          {"knn_top1", knn},
          {"stopped", result.stopped},
          {"bad_images", result.bad_images},
          {"best_top1", result.best_top1 < 0 ? nlohmann::json() : nlohmann::json(result.best_top1)},
          {"best_epoch", result.best_top1 < 0 ? nlohmann::json() : nlohmann::json(result.best_epoch)},
          {"checkpoint", result.checkpoint.string()},
          {"seconds", result.seconds}};
}

/// Where cross-samples meet a queue that holds much of the data: a warning with a size that does not; else empty. The
/// paper's queue holds 5 % of ImageNet.
std::string queue_warning(const Config& config, int64_t images) {
  if (!uses_partner(config.method) || !base_of(config.method).queue) return "";
  const double share = static_cast<double>(config.method.queue) / static_cast<double>(images);
  if (share <= 0.2) return "";
  return cat(
      "method.queue = {} holds {:.0f} % of the {} images: the key of a neighbour is often among the negatives; "
      "--set method.queue={} holds 5 %",
      config.method.queue, 100 * share, images, std::max<int64_t>(config.train.batch_size, images / 20));
}

/// What a run is followed by, as commands with this run's paths.
std::string next_commands(const Options& o, const Config& config, const RunResult& result, bool labelled) {
  const std::filesystem::path out = o.out;
  const std::string from = (result.best_top1 >= 0 ? out / "best" : out).string();
  const std::vector<std::string> evaluate =
      config.data.test.empty() || !labelled
          ? std::vector<std::string>{"csml",         "embed",
                                     "--checkpoint", from,
                                     "--data",       config.data.train,
                                     "--out",        (out / "features.safetensors").string()}
          : std::vector<std::string>{"csml",   "knn",           "--checkpoint", from, "--train", config.data.train,
                                     "--test", config.data.test};
  return cat("next: {}\n      {}\n      {}\n", shell_line({"csml", "report", "--run", o.out}), shell_line(evaluate),
             shell_line({"csml", "export", "--checkpoint", from, "--format", "torchvision", "--out",
                         (out / "backbone.safetensors").string()}));
}

/// What was reached and, where the run is done, what can follow.
std::string result_text(const Options& o, const Config& config, const RunResult& result, bool labelled) {
  std::string text =
      cat("{} after {} steps ({} epochs) in {}: {}{}; {}\n", result.stopped ? "stopped" : "done", result.steps,
          result.epochs, duration_text(result.seconds),
          result.loss ? cat("loss {:.4f}", *result.loss) : "no step was left to take",
          result.knn_top1 < 0 ? "" : cat(", online k-NN {:.2f} %", result.knn_top1), result.checkpoint.string());
  if (result.best_top1 >= 0)
    text += cat("best: online k-NN {:.2f} % after epoch {}, chosen by the probe {}; {}\n", result.best_top1,
                result.best_epoch, config.data.test, (std::filesystem::path(o.out) / "best").string());
  text += judge(read_metrics(std::filesystem::path(o.out) / "metrics.jsonl")).text() + "\n";
  return result.stopped ? text : text + next_commands(o, config, result, labelled);
}

/// Refuses a plan that does not fit into what this machine has, before anything is written. On a card nothing is checked:
/// what it has is not asked.
void check_plan(const Config& config, const Dataset& train, const Device& device, int processes, int local) {
  if (std::string(device.name()) != "cpu") return;
  check_memory(memory_plan(config, train, processes), config, available_host_memory() / static_cast<uint64_t>(local));
}

int train_on(const Options& o, const ResolvedConfig& resolved, const Dataset& train, StopSignals& signals,
             Device& device, Comm& comm) {
  RunOptions options;
  options.out = o.out;
  options.init_from = o.init_from;
  options.stop = &signals.asked();
  options.phase = [&signals](const std::string& text) { signals.phase(text); };
  check_same_start(resolved.config, device, comm);
  FolderLock lock;
  const bool had_folder = std::filesystem::exists(options.out);
  const Config& config = resolved.config;
  log_info(
      cat("learning rate {:.4g} = schedule.lr {:.4g} x {} images a step / 256 ({} process{} x {} part{} x {} images)",
          config.schedule.base_lr, config.lr_per_256, config.train.batch_size, comm.size(),
          comm.size() == 1 ? "" : "es", config.train.accumulate, config.train.accumulate == 1 ? "" : "s",
          config.train.batch_size / comm.size() / config.train.accumulate));
  if (const std::string warning = queue_warning(config, train.size()); comm.rank() == 0 && !warning.empty())
    log_warn(warning);
  RunResult result;
  bool fresh = false;
  try {
    if (comm.rank() == 0) fresh = prepare_folder(o, resolved, device, comm, train, lock, options);
    result = pretrain(device, comm, resolved.config, options);
  } catch (...) {
    // A start that fails leaves the folder as it was: the corrected command finds no other run in it.
    if (fresh && is_start_without_training(options.out)) remove_start(options.out, had_folder);
    throw;
  }
  if (comm.rank() == 0)
    answer(o.common, result_json(o, resolved.config, result),
           result_text(o, resolved.config, result, train.has_labels()));
  comm.phase("the end");
  signals.phase("the end");
  comm.barrier();  // a launcher ends all processes when one is gone with an exit code that is not 0
  if (result.non_finite > 0 && !result.stopped)
    throw Error(
        cat("the last {} step{} had no finite gradient and changed nothing; lower schedule.lr, or see where it "
            "comes from: csml replay --run {} --step {}",
            result.non_finite, result.non_finite == 1 ? "" : "s", o.out, result.steps - result.non_finite + 1));
  return result.stopped ? kExitStopped : 0;
}

/// Under CSML_TIMELINE=FILE: a timeline of the run's backward passes and reductions, written at its end, of each
/// process its own (FILE, FILE.1, …).
class TimelineFile {
 public:
  TimelineFile(Device& device, int rank) : device_(device), timeline_(rank) {
    const char* file = std::getenv("CSML_TIMELINE");
    if (!file || !*file) return;
    if (std::string(device.name()) != "cpu")
      throw UsageError("CSML_TIMELINE is for the CPU; on a card use Nsight Systems and csml bench --buckets");
    path_ = rank == 0 ? file : cat("{}.{}", file, rank);
    device.set_timeline(&timeline_);
  }
  ~TimelineFile() {
    if (path_.empty()) return;
    device_.set_timeline(nullptr);
    try {
      timeline_.write(path_);
      const Timeline::Communication c = timeline_.communication();
      log_info(cat("timeline in {}: reductions under way for {:.3f} s, {:.0f} % of it exposed", path_, c.whole,
                   100 * c.share));
    } catch (const std::exception& e) { log_warn(e.what()); }
  }
  TimelineFile(const TimelineFile&) = delete;
  TimelineFile& operator=(const TimelineFile&) = delete;

 private:
  Device& device_;
  Timeline timeline_;
  std::string path_;
};

int run(const Options& o) {
  if (o.preset == "help") {
    const std::string list = preset_list() +
                             "auto, also without --preset: chosen for the images, the machine and --hours; "
                             "own-images-cpu and own-images are such choices, fixed.\n";
    answer(o.common, {{"task", "presets"}, {"text", list}}, list);
    return 0;
  }
  if (o.list_keys) {
    if (o.help_keys == "markdown") {
      answer(o.common, {{"task", "keys"}, {"text", keys_markdown()}}, keys_markdown());
    } else {
      answer(o.common, {{"task", "keys"}, {"keys", keys_json(o.help_keys)}}, keys_text(o.help_keys));
    }
    return 0;
  }
  ResolvedConfig resolved = read_config(o);
  CommonOptions common = o.common;
  common.threads = resolved.config.train.threads;
  const Launch job = launch();
  start(common, job);
  const bool choice = wants_choice(o, resolved);
  std::unique_ptr<Dataset> train;
  if (!resolved.config.data.train.empty()) train = open_dataset(resolved.config.data.train);
  if (!o.dry_run && !train)
    throw UsageError("--data SPEC is needed: the images to pretrain on (or data.train in the configuration)");
  if (!o.dry_run && o.out.empty()) throw UsageError("--out DIR is needed: the run folder");
  if (choice && job.size > 1)
    throw UsageError(
        "--preset auto measures one process: csml pretrain … --dry-run prints its choice, and --config takes "
        "it for several");
  std::unique_ptr<Device> device;
  if (choice && train) {
    device = Device::open(device_of(resolved.config.train.device, job));
    resolved = choose_config(o, resolved, *train, *device);
  }
  if (train) take_channels(resolved, *train);
  const Config& config = resolved.config;
  if (o.dry_run) return job.rank == 0 ? dry_run(o, resolved, train.get()) : 0;

  StopSignals signals(job.rank, job.size, config.train.stop_seconds);
  if (!device) device = Device::open(device_of(config.train.device, job));
  compute_type(config.train.precision, *device);  // refused here, before there is a folder
  check_plan(config, *train, *device, job.size, job.local_size);
  const auto comm = Comm::open(*device, {.timeout_seconds = config.comm.timeout_seconds, .rendezvous = {}});
  const TimelineFile timeline(*device, job.rank);
  if (comm->size() == 1) return train_on(o, resolved, *train, signals, *device, *comm);
  try {
    return train_on(o, resolved, *train, signals, *device, *comm);
  } catch (const UsageError& e) { comm->abort(e.what(), 2); } catch (const std::exception& e) {
    comm->abort(e.what(), 1);
  }
  throw Error("the job was aborted");
}

}  // namespace

Command pretrain_command(CLI::App& app, const std::vector<std::string>& arguments) {
  auto o = std::make_shared<Options>();
  o->arguments = arguments;
  app.add_option("--preset", o->preset,
                 "A published or tested recipe, or auto (also where no recipe is given): chosen for the images, the "
                 "machine and --hours; `--preset help` lists them")
      ->type_name("NAME");
  app.add_option("--config", o->config, "TOML file; its values win over the preset's")->type_name("FILE");
  app.add_option("--out", o->out, "Run folder; a run in it is resumed, or refused by name")->type_name("DIR");
  app.add_option("--hours", o->hours, "Wanted length of a run whose recipe is chosen [1]")
      ->check(CLI::Range(0.01, 10000.0))
      ->type_name("H");
  Config defaults;
  resolve(defaults);
  const nlohmann::json values = to_json(defaults);
  for (const KeyFlag& flag : key_flags()) {
    const std::string key = flag.key;
    const nlohmann::json& value = values[key.substr(0, key.find('.'))][key.substr(key.find('.') + 1)];
    const std::string fallback = value.is_string() ? value.get<std::string>() : value.dump();
    app.add_option_function<std::string>(
           flag.flag, [o, name = std::string(flag.flag)](const std::string& text) { o->keys[name] = text; },
           cat("{} ({}{}{})", key_help(key), key, fallback.empty() ? "" : "; default: the preset's, else ", fallback))
        ->type_name(flag.type);
  }
  app.add_option("--set", o->set, "Any configuration key, once per key; --help-keys lists them all")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  app.add_option_function<std::string>(
         "--help-keys",
         [o](const std::string& which) { o->list_keys = true, o->help_keys = which == "all" ? "" : which; },
         "Print what configuration keys mean: all, of one SECTION, or one KEY; `markdown` is docs/keys.md")
      ->expected(0, 1)
      ->default_str("all")
      ->type_name("SECTION|KEY");
  app.add_option("--resume", o->resume, "auto (go on with the run in --out) | never | a run or checkpoint folder")
      ->type_name("auto|never|DIR")
      ->capture_default_str();
  app.add_option("--init-from", o->init_from, "Start both encoders from torchvision-named weights")
      ->type_name("FILE.safetensors");
  app.add_flag("--overwrite", o->overwrite, "Remove the run in --out and start anew");
  app.add_flag("--dry-run", o->dry_run, "Print the resolved configuration and the memory plan, train nothing");
  add_common_options(app, o->common, false);
  app.footer(
      "Example: csml pretrain --data folder:DIR --out runs/mine\n"
      "         csml pretrain --preset cifar10-small --data cifar10:DIR --test-data 'cifar10:DIR?split=test' "
      "--out runs/a\n"
      "Values come from: defaults < preset < --config < CSML_SECTION_KEY in the environment < flags and --set.\n"
      "SIGTERM, SIGINT, SIGUSR1, SIGHUP and --max-hours end the step, write a checkpoint and exit with 75; the same "
      "command\n"
      "goes on. A second signal ends it at once; what takes longer than train.stop_seconds to end exits with 70.\n"
      "Several processes: mpirun -np 4 csml pretrain … (or srun --mpi=pmix), same flags; --batch-size stays that of "
      "all\n"
      "together, and a batch-norm group must lie inside one process (or method.bn_sync=true). A process that waits\n"
      "for another longer than comm.timeout_seconds says so and exits with 70.\n"
      "CSML_TIMELINE=FILE writes when operations and reductions ran (docs/cluster.md).");
  return [o] { return run(*o); };
}

}  // namespace csml
