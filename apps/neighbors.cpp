// csml neighbors: exact k nearest neighbours inside a data set, with label purity where labels exist.
#include "csml/training/neighbors.h"

#include <chrono>

#include "apps/feature_source.h"
#include "engine/file.h"
#include "engine/safetensors.h"

namespace csml {
namespace {

struct Options : DataOptions {
  std::string out;
  int k = 5;
};

void write_json(const std::string& path, const Dataset& data, const NeighborTable& table,
                const std::vector<float>& similarity) {
  nlohmann::json images = nlohmann::json::array();
  const auto k = static_cast<size_t>(table.k);
  for (int64_t i = 0; i < data.size(); ++i) {
    nlohmann::json near = nlohmann::json::array();
    for (size_t j = 0; j < k; ++j) {
      const size_t at = static_cast<size_t>(i) * k + j;
      near.push_back(
          {{"index", table.index[at]}, {"similarity", similarity[at]}, {"label", data.label(table.index[at])}});
    }
    images.push_back({{"index", i}, {"name", data.name(i)}, {"label", data.label(i)}, {"neighbors", std::move(near)}});
  }
  write_text_file(path, json_line({{"k", table.k}, {"classes", data.class_names()}, {"images", images}}) + "\n");
}

int run(const Options& o) {
  start(o.common);
  const bool as_json = o.out.ends_with(".json");
  if (!o.out.empty() && !as_json && !o.out.ends_with(".safetensors"))
    throw UsageError(cat("--out {}: the name must end in .json or .safetensors", o.out));
  const auto begin = std::chrono::steady_clock::now();
  const auto device = Device::open(o.source.device);
  const auto data = open_dataset(o.data);
  if (data->size() <= o.k)
    throw UsageError(cat("--k {} needs more than {} images; {} has {}", o.k, o.k, o.data, data->size()));
  const FeatureSource source(*device, o.source, *data);
  const Features features = source.extract(*data, "features");
  std::vector<float> similarity;
  const NeighborTable table = nearest_neighbors(features.values, o.k, &similarity);
  const double purity = neighbor_purity(table, features.labels);
  if (as_json) {
    write_json(o.out, *data, table, similarity);
  } else if (!o.out.empty()) {
    const std::vector<int64_t> labels(features.labels.begin(), features.labels.end());
    const std::vector<HostArray> arrays{{"neighbors", DType::i32, Shape{data->size(), o.k}, table.index.data()},
                                        {"similarity", DType::f32, Shape{data->size(), o.k}, similarity.data()},
                                        {"labels", DType::i64, Shape{data->size()}, labels.data()}};
    write_safetensors(o.out, arrays, {{"data", o.data}, {"protocol", source.protocol()}});
  }
  double mean = 0;
  for (float s : similarity) mean += s;
  mean /= static_cast<double>(similarity.size());

  nlohmann::json json = source.describe();
  json.update(
      {{"task", "neighbors"},
       {"k", o.k},
       {"n", data->size()},
       {"data", o.data},
       {"purity", purity < 0 ? nlohmann::json() : nlohmann::json(purity)},
       {"similarity", mean},
       {"out", o.out.empty() ? nlohmann::json() : nlohmann::json(o.out)},
       {"bad_images", features.bad_images},
       {"protocol", cat("exact nearest neighbours by cosine, the image itself excluded, {}", source.protocol())},
       {"seconds", std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count()}});
  answer(o.common, json,
         cat("{} neighbours of each of {} images: {}mean similarity {:.3f}{}\n", o.k, data->size(),
             purity < 0 ? "no labels, " : cat("purity {:.2f} %, ", 100 * purity), mean,
             o.out.empty() ? "" : cat("; written to {}", o.out)));
  return 0;
}

}  // namespace

Command neighbors_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  add_data_options(app, *o, "k");
  app.add_option("--k", o->k, "Neighbours of each image")
      ->check(CLI::Range(1, 10000))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--out", o->out, "The table: .json (names, labels) or .safetensors (neighbors [N, k] i32, similarity)")
      ->type_name("FILE");
  app.footer(
      "Example: csml neighbors --checkpoint runs/demo --data cifar10:DIR --k 5 --out neighbors.json\n"
      "Purity is the share of neighbours of the same class; labels serve nothing else.");
  return [o] { return run(*o); };
}

}  // namespace csml
