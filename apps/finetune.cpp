// csml finetune: the whole network trained on few labels; with --self-train again on pseudo labels of low entropy.
#include "csml/evaluation/finetune.h"

#include <chrono>
#include <optional>

#include "apps/command.h"
#include "apps/feature_source.h"
#include "apps/kept_result.h"
#include "apps/run_folder.h"
#include "csml/evaluation/label_split.h"
#include "data/subset.h"
#include "engine/log.h"
#include "version.h"

namespace csml {
namespace fs = std::filesystem;
namespace {

using Clock = std::chrono::steady_clock;
double since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

constexpr double kFewLabels = 0.03;  // below this share SwAV's rates for 1 % are the default, else those for 10 %
constexpr int kFewSteps = 200;       // fewer optimizer steps than this deserve a word
const std::vector<std::string> kFiles{"config.json", "metrics.jsonl", "result.json", "labels.txt",
                                      "classifier.safetensors"};

struct Options : LabelledOptions {
  std::string labels = "10%", out;
  bool self_train = false, from_scratch = false, overwrite = false;
  FinetuneOptions recipe;
  double trunk_rate = 0, head_rate = 0;  // 0: by the share of labels
  double crop_min = 0.08, holdout_percent = 20, entropy_threshold = -1;
  int self_train_epochs = 30;
  double self_train_trunk_rate = 0.01, self_train_head_rate = 0.2;
};

std::vector<int64_t> labelled_images(const Options& o, const Dataset& train, std::string* how) {
  if (!o.labels.ends_with('%')) {
    int64_t unmatched = 0;
    std::vector<int64_t> chosen = listed_labels(train, o.labels, &unmatched);
    if (unmatched > 0) log_warn(cat("{}: {} lines name no image of {}", o.labels, unmatched, train.describe()));
    *how = cat("{} labels listed in {}", chosen.size(), fs::path(o.labels).filename().string());
    return chosen;
  }
  double percent = 0;
  size_t read = 0;
  try {
    percent = std::stod(o.labels, &read);
  } catch (const std::exception&) {}
  if (read + 1 != o.labels.size() || !(percent > 0 && percent <= 100))
    throw UsageError(cat("--labels {}: give a share such as 1% or 10%, or a list file", o.labels));
  std::vector<int> labels;
  for (int64_t i = 0; i < train.size(); ++i) labels.push_back(train.label(i));
  std::vector<int64_t> chosen = balanced_labels(labels, train.class_count(), percent / 100, o.recipe.seed);
  *how = cat("{} labels, {} of the training images, class-balanced, drawn by seed {}", chosen.size(), o.labels,
             o.recipe.seed);
  return chosen;
}

std::vector<int> labels_of(const Dataset& dataset) {
  std::vector<int> labels;
  for (int64_t i = 0; i < dataset.size(); ++i) labels.push_back(dataset.label(i));
  return labels;
}

/// One command: what it works on, and its log.
class Work {
 public:
  Work(const Options& o, Device& device, const FeatureSource& source, const Dataset& train)
      : o_(o), device_(device), source_(source), train_(train), metrics_(fs::path(o.out) / "metrics.jsonl") {}

  FinetuneResult stage(const std::string& name, const Dataset& images, const Dataset* test, int epochs,
                       double trunk_rate, double head_rate) {
    FinetuneOptions recipe = o_.recipe;
    recipe.epochs = epochs;
    recipe.trunk_rate = trunk_rate;
    recipe.head_rate = head_rate;
    const int64_t per_epoch = std::max<int64_t>(1, images.size() / recipe.batch_size);
    if (per_epoch * epochs < kFewSteps)
      log_warn(cat("{}: {} optimizer steps in all; so few images want a smaller --batch-size or more --epochs", name,
                   per_epoch * epochs));
    Progress progress(name, epochs, "epochs");
    recipe.after_epoch = [&](const FinetuneEpoch& line) {
      nlohmann::json json{{"kind", "epoch"},
                          {"stage", name},
                          {"epoch", line.epoch},
                          {"step", line.step},
                          {"loss", line.loss},
                          {"train_top1", line.train_top1},
                          {"lr_trunk", line.trunk_rate},
                          {"lr_head", line.head_rate}};
      if (line.top1 >= 0) json["top1"] = line.top1, json["top5"] = line.top5;
      metrics_.write(json);
      progress.update(line.epoch,
                      cat("loss {:.3f}{}", line.loss, line.top1 >= 0 ? cat("  top-1 {:.1f} %", line.top1) : ""));
    };
    const Params* start = o_.from_scratch ? nullptr : &source_.model().encoder->params();
    FinetuneResult result = finetune(device_, source_.model().config.model, start, images, test, recipe);
    progress.finish();
    return result;
  }

  Predictions predict_images(const Classifier& classifier, const Dataset& images, const std::string& label) {
    FeatureOptions options = o_.recipe.eval;
    Progress progress(label, images.size(), "images");
    options.progress = [&](int64_t done, int64_t) { progress.update(done); };
    Predictions out = predict(device_, classifier, images, options);
    progress.finish();
    return out;
  }

  /// The images without labels that a classifier is sure of, with their pseudo labels; fills `json` with what is said
  /// about them. Appends to index and labels.
  void add_pseudo_labels(const Classifier& classifier, const std::vector<int64_t>& labelled, double rates[2],
                         std::vector<int64_t>* index, std::vector<int>* labels, nlohmann::json* json) {
    double bits = o_.entropy_threshold;
    if (bits <
        0) {  // a classifier of its own, that has not seen the held-out labels, says how far entropy can be trusted
      const Subset all(train_, labelled);
      const HoldOut split = hold_out(labels_of(all), train_.class_count(), o_.holdout_percent / 100, o_.recipe.seed);
      if (split.held.empty() || split.rest.empty())
        throw Error(
            "--self-train: too few labels to hold some out for the entropy threshold; give --entropy-threshold");
      const Subset rest(all, {split.rest.begin(), split.rest.end()}), held(all, {split.held.begin(), split.held.end()});
      const FinetuneResult judge = stage("choose threshold", rest, nullptr, o_.recipe.epochs, rates[0], rates[1]);
      const Predictions on_held = predict_images(*judge.classifier, held, "held-out labels");
      const EntropyThreshold threshold = choose_threshold(on_held, labels_of(held));
      bits = threshold.bits;
      *json = {{"held_out", threshold.held},
               {"held_out_top1", on_held.top1},
               {"held_out_kept", threshold.kept},
               {"held_out_precision", threshold.precision}};
    }
    std::vector<int64_t> unlabelled;
    for (int64_t i = 0, next = 0; i < train_.size(); ++i) {
      if (next < static_cast<int64_t>(labelled.size()) && labelled[static_cast<size_t>(next)] == i) {
        ++next;
      } else {
        unlabelled.push_back(i);
      }
    }
    if (unlabelled.empty()) throw Error("--self-train: every image is labelled, there is nothing to learn from");
    const Subset images(train_, unlabelled);
    const Predictions guess = predict_images(classifier, images, "pseudo labels");
    int64_t kept = 0, right = 0;
    for (size_t i = 0; i < unlabelled.size(); ++i) {
      if (bits < 0 || guess.entropy[i] > bits) continue;
      index->push_back(unlabelled[i]);
      labels->push_back(guess.label[i]);
      ++kept;
      right += guess.label[i] == train_.label(unlabelled[i]);
    }
    json->update({{"entropy_threshold_bits", bits < 0 ? nlohmann::json() : nlohmann::json(bits)},
                  {"unlabelled", unlabelled.size()},
                  {"kept", kept},
                  {"precision", kept ? nlohmann::json(100.0 * static_cast<double>(right) / static_cast<double>(kept))
                                     : nlohmann::json()}});
  }

  MetricsLog& metrics() { return metrics_; }

 private:
  const Options& o_;
  Device& device_;
  const FeatureSource& source_;
  const Dataset& train_;
  MetricsLog metrics_;
};

nlohmann::json stage_json(const std::string& name, const FinetuneResult& r, int64_t images,
                          const std::string& protocol) {
  return {{"stage", name},
          {"top1", r.top1},
          {"top5", r.top5},
          {"best_top1", r.best_top1},
          {"best_epoch", r.best_epoch},
          {"steps", r.steps},
          {"images", images},
          {"protocol", protocol}};
}

void prepare_folder(const Options& o) {
  const fs::path out(o.out);
  std::error_code error;
  if (fs::exists(out, error) && !fs::is_directory(out, error))
    throw Error(cat("--out {} is a file; give a folder", o.out));
  if (fs::exists(out / "config.toml", error) || fs::exists(out / "checkpoints", error))
    throw Error(cat("{} holds a pretraining run; give another --out", o.out));
  for (const std::string& name : kFiles) {
    if (!fs::exists(out / name, error)) continue;
    if (!o.overwrite) throw Error(cat("{} holds a result already; give another --out, or --overwrite", o.out));
    fs::remove(out / name, error);
    if (error) throw Error(cat("cannot remove {}: {}", (out / name).string(), error.message()));
  }
  fs::create_directories(out, error);
  if (error) throw Error(cat("cannot create the folder {}: {}", o.out, error.message()));
}

int run(Options& o, const std::vector<std::string>& arguments) {
  start(o.common);
  const auto begin = Clock::now();
  const auto device = Device::open(o.source.device);
  const LabelledSets sets = open_labelled(o, "finetune");
  const auto& [train, test] = sets;
  const FeatureSource source(*device, o.source, *train);
  source.check_channels(*train);
  std::string how;
  const std::vector<int64_t> labelled = labelled_images(o, *train, &how);
  const double share = static_cast<double>(labelled.size()) / static_cast<double>(train->size());

  double rates[2] = {share < kFewLabels ? 0.02 : 0.01, share < kFewLabels ? 5 : 0.2};
  if (o.from_scratch) rates[0] = rates[1] = 0.1;
  if (o.trunk_rate > 0) rates[0] = o.trunk_rate;
  if (o.head_rate > 0) rates[1] = o.head_rate;
  o.recipe.eval = source.options();
  o.recipe.eval.on_bad_image = [](const std::string& path, const std::string& reason) {
    log_warn(cat("unreadable image: {} ({})", path, reason));
  };
  AugmentConfig& augment = o.recipe.augment = source.options().normalise;  // mean, deviation, flip, channels
  augment.crop_size = source.options().transform.size;
  augment.scale_min = static_cast<float>(o.crop_min);
  augment.scale_max = 1;
  augment.jitter_p = augment.gray_p = augment.blur_p = augment.solarize_p = 0;
  augment.channels = train->channels();

  prepare_folder(o);
  const std::string recipe_text =
      cat("SGD {:g}, rates {:g} (trunk) and {:g} (head) x {:g} at {:g} of the epochs, batch {}, random resized crops "
          "{:g}..1 and flips p {:g}, un-augmented test images in inference mode",
          o.recipe.momentum, rates[0], rates[1], o.recipe.decay, fmt::join(o.recipe.milestones, ", "),
          std::min<int64_t>(o.recipe.batch_size, static_cast<int64_t>(labelled.size())), o.crop_min, augment.flip_p);
  const std::string start_text =
      o.from_scratch ? "random weights" : cat("the trunk of encoder {}", source.model().which);
  const std::string protocol = cat("fine-tuning of the whole network on {}, from {}, {} epochs, {}, last epoch", how,
                                   start_text, o.recipe.epochs, recipe_text);
  const nlohmann::json config{{"task", "finetune"},
                              {"checkpoint", source.model().source},
                              {"checkpoint_xxh3_128", source.model().content},
                              {"encoder", source.model().which},
                              {"from_scratch", o.from_scratch},
                              {"train", o.train},
                              {"test", o.test},
                              {"labels", o.labels},
                              {"n_labelled", labelled.size()},
                              {"self_train", o.self_train},
                              {"epochs", o.recipe.epochs},
                              {"batch_size", o.recipe.batch_size},
                              {"lr_trunk", rates[0]},
                              {"lr_head", rates[1]},
                              {"milestones", o.recipe.milestones},
                              {"decay", o.recipe.decay},
                              {"momentum", o.recipe.momentum},
                              {"weight_decay", o.recipe.weight_decay},
                              {"crop_min", o.crop_min},
                              {"flip_p", augment.flip_p},
                              {"size", augment.crop_size},
                              {"holdout_percent", o.holdout_percent},
                              {"self_train_epochs", o.self_train_epochs},
                              {"lr_self_train_trunk", o.self_train_trunk_rate},
                              {"lr_self_train_head", o.self_train_head_rate},
                              {"seed", o.recipe.seed},
                              {"threads", compute_threads()},
                              {"device", device->name()},
                              {"version", kVersion},
                              {"commit", kCommit},
                              {"command", shell_line(arguments)}};
  write_text_file(fs::path(o.out) / "config.json", config.dump(2) + "\n");
  std::string numbers;
  for (int64_t i : labelled) numbers += cat("{}\n", i);
  write_text_file(fs::path(o.out) / "labels.txt", numbers);

  Work work(o, *device, source, *train);
  const Subset images(*train, labelled);
  FinetuneResult last = work.stage("fine-tune", images, test.get(), o.recipe.epochs, rates[0], rates[1]);
  nlohmann::json json = config;
  json["stages"] = {stage_json("fine-tune", last, images.size(), protocol)};
  std::string text =
      cat("fine-tuned     top-1 {:6.2f} %   top-5 {:6.2f} %   (last epoch; best epoch on test {}: {:.2f} %)\n",
          last.top1, last.top5, last.best_epoch, last.best_top1);
  text += protocol + "\n";
  if (o.self_train) {
    std::vector<int64_t> index = labelled;
    std::vector<int> labels = labels_of(images);
    nlohmann::json pseudo;
    work.add_pseudo_labels(*last.classifier, labelled, rates, &index, &labels, &pseudo);
    work.metrics().write(
        {{"kind", "event"}, {"event", "pseudo_labels"}, {"epoch", 0}, {"step", 0}, {"pseudo", pseudo}});
    json["pseudo"] = pseudo;
    if (index.size() == labelled.size())
      log_warn(
          "no prediction has an entropy below the threshold: self-training has nothing to add and repeats the labels");
    const std::string kept =
        cat("{} of {} images kept below {} bits", pseudo["kept"].get<int64_t>(), pseudo["unlabelled"].get<int64_t>(),
            pseudo["entropy_threshold_bits"].is_null() ? "no"
                                                       : cat("{:.3f}", pseudo["entropy_threshold_bits"].get<double>()));
    const std::string self_protocol =
        cat("self-training: the labels above and hard pseudo labels of the fine-tuned network ({}; threshold {}), "
            "fine-tuned again from {}, {} epochs, rates {:g} (trunk) and {:g} (head), otherwise as above, last epoch",
            kept, o.entropy_threshold >= 0 ? "given" : "chosen on held-out labels", start_text, o.self_train_epochs,
            o.self_train_trunk_rate, o.self_train_head_rate);
    const Subset more(*train, index, labels);
    last = work.stage("self-train", more, test.get(), o.self_train_epochs, o.self_train_trunk_rate,
                      o.self_train_head_rate);
    json["stages"].push_back(stage_json("self-train", last, more.size(), self_protocol));
    text += cat("self-trained   top-1 {:6.2f} %   top-5 {:6.2f} %   (last epoch; best epoch on test {}: {:.2f} %)\n",
                last.top1, last.top5, last.best_epoch, last.best_top1);
    text += self_protocol + "\n";
  }
  const nlohmann::json& headline = json["stages"].back();
  for (const char* key : {"top1", "top5", "best_top1", "best_epoch", "protocol"}) json[key] = headline[key];
  json["n_train"] = train->size();
  json["n_test"] = test->size();
  json["bad_images"] = last.bad_images;
  json["seconds"] = since(begin);

  const std::vector<NamedArray> weights = last.classifier->to_host();
  std::vector<HostArray> views;
  for (const NamedArray& a : weights) views.push_back({a.name, a.dtype, a.shape, a.data.data()});
  const auto list = [channels = train->channels()](const std::array<float, 4>& v) {
    return cat("{}", fmt::join(v.begin(), v.begin() + channels, ","));
  };
  write_safetensors(fs::path(o.out) / "classifier.safetensors", views,
                    {{"format", "pt"},
                     {"mean", list(augment.mean)},
                     {"std", list(augment.std)},
                     {"protocol", json["protocol"].get<std::string>()}});
  write_text_file(fs::path(o.out) / "result.json",
                  json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
  answer_result(o.common, json, text);
  return 0;
}

}  // namespace

Command finetune_command(CLI::App& app, const std::vector<std::string>& arguments) {
  auto o = std::make_shared<Options>();
  add_labelled_options(app, *o, false);
  app.add_option("--out", o->out,
                 "Folder for config.json, metrics.jsonl, result.json, labels.txt, classifier.safetensors")
      ->type_name("DIR")
      ->required();
  app.add_option("--labels", o->labels,
                 "1% | 10% | any share, class-balanced by --seed | a file with one image a line: a file name as in "
                 "SimCLR's lists, or an image's number")
      ->type_name("SHARE|FILE")
      ->capture_default_str();
  app.add_flag("--self-train", o->self_train, "Then again, on labels and pseudo labels of low entropy");
  app.add_flag("--from-scratch", o->from_scratch, "From random weights instead: the comparison");
  app.add_flag("--overwrite", o->overwrite, "Replace the result that is in --out");
  app.add_option("--epochs", o->recipe.epochs, "Passes over the labelled images")
      ->check(CLI::Range(1, 1000000))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--batch-size", o->recipe.batch_size, "Images per step; fewer labelled images are one batch")
      ->check(CLI::Range(1, 65536))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--lr-trunk", o->trunk_rate,
                 "Learning rate of the trunk [0.02 below 3 % of labels, else 0.01; from scratch 0.1]")
      ->check(CLI::PositiveNumber)
      ->type_name("LR");
  app.add_option("--lr-head", o->head_rate, "And of the classifier [5 below 3 % of labels, else 0.2; from scratch 0.1]")
      ->check(CLI::PositiveNumber)
      ->type_name("LR");
  app.add_option("--milestones", o->recipe.milestones, "Shares of the epochs at which both rates fall")
      ->delimiter(',')
      ->check(CLI::Range(0.0, 1.0))
      ->type_name("X,…")
      ->capture_default_str();
  app.add_option("--decay", o->recipe.decay, "To this part")
      ->check(CLI::Range(0.0, 1.0))
      ->type_name("X")
      ->capture_default_str();
  app.add_option("--weight-decay", o->recipe.weight_decay, "Of all parameters")
      ->check(CLI::NonNegativeNumber)
      ->type_name("X")
      ->capture_default_str();
  app.add_option("--crop-min", o->crop_min, "Least share of an image's area that a training crop shows")
      ->check(CLI::Range(0.001, 1.0))
      ->type_name("X")
      ->capture_default_str();
  app.add_option("--eval-every", o->recipe.eval_every, "Epochs between tests; the last epoch is always tested")
      ->check(CLI::Range(1, 1000000))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--self-train-epochs", o->self_train_epochs, "Passes over labels and pseudo labels")
      ->check(CLI::Range(1, 1000000))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--self-train-lr-trunk", o->self_train_trunk_rate, "Learning rate of the trunk then")
      ->check(CLI::PositiveNumber)
      ->type_name("LR")
      ->capture_default_str();
  app.add_option("--self-train-lr-head", o->self_train_head_rate, "And of the classifier")
      ->check(CLI::PositiveNumber)
      ->type_name("LR")
      ->capture_default_str();
  app.add_option("--holdout", o->holdout_percent,
                 "Percent of the labels of each class held out to choose the entropy threshold; never of --test")
      ->check(CLI::Range(1.0, 90.0))
      ->type_name("PERCENT")
      ->capture_default_str();
  app.add_option("--entropy-threshold", o->entropy_threshold, "Keep predictions of at most this entropy [chosen]")
      ->check(CLI::NonNegativeNumber)
      ->type_name("BITS");
  app.add_option("--seed", o->recipe.seed, "Of the labels drawn, the order, the crops and the classifier's start")
      ->type_name("N")
      ->capture_default_str();
  app.remove_option(app.get_option("--features"));
  app.footer(
      "Example: csml finetune --checkpoint runs/a --train cifar10:DIR --test 'cifar10:DIR?split=test' --labels 10% "
      "--self-train --out runs/a_10\n"
      "Rates and steps are those of SwAV on ImageNet; data of few images want more --epochs and a smaller "
      "--batch-size.");
  return [o, arguments] { return run(*o, arguments); };
}

}  // namespace csml
