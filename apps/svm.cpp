// csml svm: linear support vector machines on frozen features, on all labels or a few images of every class.
#include <chrono>
#include <cmath>
#include <optional>

#include "apps/feature_set.h"
#include "apps/kept_result.h"
#include "csml/evaluation/label_split.h"
#include "csml/evaluation/svm.h"
#include "engine/log.h"

namespace csml {
namespace {

struct Options : LabelledOptions {
  SvmOptions svm;
  std::vector<int> shots;
  int runs = 5;
  uint64_t seed = 0;
};

int run(const Options& o) {
  start(o.common);
  const auto begin = std::chrono::steady_clock::now();
  const auto device = Device::open(o.source.device);
  const FeatureSets sets = open_feature_sets(*device, o, "svm");
  const std::vector<int>& labels = sets.train->labels();
  for (int k : o.shots) low_shot(labels, sets.class_count, k, o.seed, 0);  // too few images: say so before the work
  const Features seen = sets.train->all(true, "train features"), unseen = sets.test->all(true, "test features");

  nlohmann::json json = sets.json;
  const std::string settings = cat("squared hinge, C {:g}, positives weighted {:g}, intercept regularised, {}",
                                   o.svm.cost, o.svm.positive_weight, sets.protocol);
  json.update({{"task", "svm"},
               {"cost", o.svm.cost},
               {"positive_weight", o.svm.positive_weight},
               {"bad_images", seen.bad_images + unseen.bad_images}});
  std::string text;
  if (o.shots.empty()) {
    const SvmResult result = train_svm(seen, {}, unseen, sets.class_count, o.svm);
    json["map"] = result.mean_ap;
    json["top1"] = result.top1;
    json["ap"] = nlohmann::json::array();
    for (double ap : result.ap) json["ap"].push_back(std::isnan(ap) ? nlohmann::json() : nlohmann::json(ap));
    json["protocol"] =
        cat("one-against-rest linear SVM, mean average precision over {} classes, unit-length features, {}",
            sets.class_count, settings);
    text += cat("svm   mAP {:6.2f} %   top-1 {:6.2f} %\n", result.mean_ap, result.top1);
  } else {
    json["results"] = nlohmann::json::array();
    std::optional<Progress> progress;
    progress.emplace("svm", static_cast<int64_t>(o.shots.size()) * o.runs, "runs");
    int64_t done = 0;
    for (int k : o.shots) {
      nlohmann::json maps = nlohmann::json::array();
      double sum = 0, squares = 0, top1 = 0;
      for (int r = 0; r < o.runs; ++r) {
        const SvmResult result =
            train_svm(seen, low_shot(labels, sets.class_count, k, o.seed, r), unseen, sets.class_count, o.svm);
        maps.push_back(result.mean_ap);
        sum += result.mean_ap;
        squares += result.mean_ap * result.mean_ap;
        top1 += result.top1 / o.runs;
        progress->update(++done);
      }
      const double mean = sum / o.runs, deviation = std::sqrt(std::max(0.0, squares / o.runs - mean * mean));
      json["results"].push_back(
          {{"k", k}, {"map", mean}, {"map_std", deviation}, {"map_runs", maps}, {"top1", top1}, {"runs", o.runs}});
      text +=
          cat("svm   {:>3} images per class   mAP {:6.2f} +- {:.2f} %   top-1 {:6.2f} %\n", k, mean, deviation, top1);
    }
    progress->finish();
    json["map"] = json["results"].back()["map"];
    json["top1"] = json["results"].back()["top1"];
    json["seed"] = o.seed;
    json["protocol"] =
        cat("low-shot one-against-rest linear SVM, mean average precision over {} classes, mean of {} draws, "
            "unit-length features, {}",
            sets.class_count, o.runs, settings);
  }
  json["seconds"] = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  text += json["protocol"].get<std::string>() + "\n";
  answer_result(o.common, json, text);
  return 0;
}

}  // namespace

Command svm_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  add_labelled_options(app, *o, true);
  app.add_option("--shots", o->shots, "Training images of every class, such as 1,2,4,8,16 [all images]")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 20))
      ->type_name("K,…");
  app.add_option("--runs", o->runs, "Draws of the training images per entry of --shots")
      ->check(CLI::Range(1, 1000))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--cost", o->svm.cost, "C of the squared hinge loss")
      ->check(CLI::PositiveNumber)
      ->type_name("C")
      ->capture_default_str();
  app.add_option("--positive-weight", o->svm.positive_weight, "Of C for a class's own images")
      ->check(CLI::PositiveNumber)
      ->type_name("X")
      ->capture_default_str();
  app.add_option("--seed", o->seed, "Of the draws of --shots")->type_name("N")->capture_default_str();
  app.footer(
      "Example: csml svm --checkpoint runs/demo --train cifar10:DIR --test 'cifar10:DIR?split=test' --shots "
      "1,2,4,8,16\n"
      "Data sets have one label per image; VOC07's images with several need another program.");
  return [o] { return run(*o); };
}

}  // namespace csml
