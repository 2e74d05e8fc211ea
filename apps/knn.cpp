// csml knn: weighted k-nearest-neighbour accuracy of frozen features.
#include <algorithm>
#include <chrono>

#include "apps/feature_set.h"
#include "apps/kept_result.h"
#include "csml/evaluation/probe_knn.h"

namespace csml {
namespace {

constexpr int64_t kBlockBytes = int64_t{256} << 20;  // of training features in memory at a time

struct Options : LabelledOptions {
  std::vector<int> k{20};
  double temperature = 0.07;
  std::string setting;
  int64_t block = 0;  // 0: as many training features as kBlockBytes hold
  int shift = 0;      // pixels by which the test images are moved
};

/// The best-documented k of those asked: DINO's 20, then InstDisc's 200, then the first.
const KnnResult& headline(const std::vector<KnnResult>& results) {
  for (int k : {20, 200})
    for (const KnnResult& result : results)
      if (result.k == k) return result;
  return results.front();
}

int run(Options& o, bool own_k, bool own_temperature) {
  if (o.setting == "dino" && !own_k) o.k = {10, 20, 100, 200};
  if (o.setting == "instdisc" && !own_k) o.k = {200};
  if (o.setting == "instdisc" && !own_temperature) o.temperature = 0.1;
  start(o.common);
  const auto begin = std::chrono::steady_clock::now();
  const auto device = Device::open(o.source.device);
  const FeatureSets sets = open_feature_sets(*device, o, "knn", o.shift);
  const FeatureSet& train = *sets.train;
  for (int k : o.k) {
    if (k > train.size()) throw UsageError(cat("--k {} is more than the {} training images", k, train.size()));
  }
  const int64_t row_bytes = train.dim() * static_cast<int64_t>(sizeof(float));
  const int64_t block = o.block > 0 ? o.block : std::max<int64_t>(1, kBlockBytes / row_bytes);
  Features queries = sets.test->all(true, "test features");
  int64_t bad_images = queries.bad_images;
  KnnStream stream(std::move(queries), *std::max_element(o.k.begin(), o.k.end()));
  // Blocks of one size, so that the arena uses the same memory for each; the last may be a few rows smaller.
  const int64_t blocks = (train.size() + block - 1) / block, each = (train.size() + blocks - 1) / blocks;
  for (int64_t b = 0; b * each < train.size(); ++b) {
    const Features part = train.rows(b * each, std::min(each, train.size() - b * each), true,
                                     blocks == 1 ? "train features" : cat("train features {}/{}", b + 1, blocks));
    bad_images += part.bad_images;
    stream.add(part);
  }
  const std::vector<KnnResult> results = stream.classify(sets.class_count, o.k, o.temperature);
  const KnnResult& best = headline(results);

  nlohmann::json json = sets.json;
  json.update({{"task", "knn"},
               {"top1", best.top1},
               {"top5", best.top5},
               {"k", best.k},
               {"temperature", best.temperature},
               {"bad_images", bad_images},
               {"shift", o.shift},
               {"setting", o.setting.empty() ? nlohmann::json() : nlohmann::json(o.setting)},
               {"protocol", cat("weighted k-NN, cosine, weight exp(s / {}), {}", o.temperature, sets.protocol) +
                                (o.shift > 0 ? cat(", test images moved by {} px", o.shift) : "")},
               {"memory_bytes", device->stats().reserved},
               {"seconds", std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count()}});
  json["results"] = nlohmann::json::array();
  std::string text;
  for (const KnnResult& result : results) {
    json["results"].push_back(
        {{"k", result.k}, {"temperature", result.temperature}, {"top1", result.top1}, {"top5", result.top5}});
    text += cat("k-NN  k {:<4} top-1 {:6.2f} %{}\n", result.k, result.top1,
                result.k > 1 ? cat("   top-5 {:6.2f} %", result.top5) : "");  // one vote has no second
  }
  text +=
      cat("{} training and {} test images; {}\n", train.size(), sets.test->size(), json["protocol"].get<std::string>());
  answer_result(o.common, json, text);
  return 0;
}

}  // namespace

Command knn_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  add_labelled_options(app, *o, true);
  app.add_option("--setting", o->setting,
                 "dino (k 10,20,100,200, T 0.07) | instdisc (k 200, T 0.1, also MoCo's CIFAR demo); --k and "
                 "--temperature win [k 20, T 0.07]")
      ->check(CLI::IsMember({"dino", "instdisc"}))
      ->type_name("NAME");
  const CLI::Option* k = app.add_option("--k", o->k, "Neighbours that vote; a list such as 20,200 gives each")
                             ->delimiter(',')
                             ->check(CLI::Range(1, 1 << 20))
                             ->type_name("N,…")
                             ->capture_default_str();
  const CLI::Option* temperature =
      app.add_option("--temperature", o->temperature, "Of the votes' weights exp(similarity / T)")
          ->check(CLI::PositiveNumber)
          ->type_name("T")
          ->capture_default_str();
  app.add_option("--shift", o->shift,
                 "Move every test image by N pixels, up, down, left or right: how much rests on position?")
      ->check(CLI::Range(0, 4096))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--bank-block", o->block,
                 "Training rows in memory at a time, beside all test rows and their best k [as many as 256 MiB hold]")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 31))
      ->type_name("N");
  app.footer(
      "Example: csml knn --checkpoint runs/demo --train cifar10:DIR --test 'cifar10:DIR?split=test' --k 20,200\n"
      "         csml knn --train-features a.safetensors --test-features b.safetensors    (files of csml embed)\n"
      "The baseline that an encoder must beat: the same with --features pixels and no --checkpoint.");
  return [o, k, temperature] { return run(*o, k->count() > 0, temperature->count() > 0); };
}

}  // namespace csml
