// csml knn: weighted k-nearest-neighbour accuracy of frozen features.
#include <algorithm>
#include <chrono>

#include "apps/feature_source.h"
#include "csml/probe_knn.h"
#include "engine/log.h"

namespace csml {
namespace {

struct Options : LabelledOptions {
  std::vector<int> k{20};
  double temperature = 0.07;
};

/// The best-documented k of those asked: DINO's 20, then InstDisc's 200, then the first.
const KnnResult& headline(const std::vector<KnnResult>& results) {
  for (int k : {20, 200})
    for (const KnnResult& result : results)
      if (result.k == k) return result;
  return results.front();
}

int run(const Options& o) {
  start(o.common);
  const auto begin = std::chrono::steady_clock::now();
  const auto device = Device::open(o.source.device);
  const LabelledSets sets = open_labelled(o, "knn");
  const auto& [train, test] = sets;
  for (int k : o.k) {
    if (k > train->size()) throw UsageError(cat("--k {} is more than the {} training images", k, train->size()));
  }
  const FeatureSource source(*device, o.source, *train);
  const Features bank = source.extract(*train, "train features"), queries = source.extract(*test, "test features");
  const std::vector<KnnResult> results = knn_classify(bank, queries, train->class_count(), o.k, o.temperature);
  const KnnResult& best = headline(results);

  nlohmann::json json = source.describe();
  json.update(sets.describe(o));
  json.update({{"task", "knn"},
               {"top1", best.top1},
               {"top5", best.top5},
               {"k", best.k},
               {"temperature", best.temperature},
               {"bad_images", bank.bad_images + queries.bad_images},
               {"protocol", cat("weighted k-NN, cosine, weight exp(s / {}), {}", o.temperature, source.protocol())},
               {"seconds", std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count()}});
  json["results"] = nlohmann::json::array();
  std::string text;
  for (const KnnResult& result : results) {
    json["results"].push_back(
        {{"k", result.k}, {"temperature", result.temperature}, {"top1", result.top1}, {"top5", result.top5}});
    text += cat("k-NN  k {:<4} top-1 {:6.2f} %   top-5 {:6.2f} %\n", result.k, result.top1, result.top5);
  }
  text += cat("{} training and {} test images; {}\n", train->size(), test->size(), json["protocol"].get<std::string>());
  answer(o.common, json, text);
  return 0;
}

}  // namespace

Command knn_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  add_labelled_options(app, *o);
  app.add_option("--k", o->k, "Neighbours that vote; a list such as 20,200 gives each")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 20))
      ->type_name("N,…")
      ->capture_default_str();
  app.add_option("--temperature", o->temperature, "Of the votes' weights exp(similarity / T)")
      ->check(CLI::PositiveNumber)
      ->type_name("T")
      ->capture_default_str();
  app.footer(
      "Example: csml knn --checkpoint runs/demo --train cifar10:DIR --test 'cifar10:DIR?split=test' --k 20,200\n"
      "The baseline that an encoder must beat: the same with --features pixels and no --checkpoint.");
  return [o] { return run(*o); };
}

}  // namespace csml
