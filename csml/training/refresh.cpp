#include "csml/training/refresh.h"

#include "csml/training/neighbors.h"
#include "engine/precision.h"
#include "kernels/random.h"

namespace csml {

namespace {

/// The ablation: CutMix and cross terms with an arbitrary other image.
NeighborTable random_partners(const Config& config, int64_t images, int64_t epoch) {
  NeighborTable table{.index = {}, .k = config.method.neighbors};
  for (int64_t i = 0; i < images; ++i) {
    Random random(config.train.seed, Purpose::neighbor, static_cast<uint64_t>(epoch), static_cast<uint64_t>(i), 1);
    for (int j = 0; j < table.k; ++j) {
      const auto other = static_cast<int64_t>(random.below(static_cast<uint32_t>(images - 1)));
      table.index.push_back(static_cast<int32_t>(other + (other >= i)));
    }
  }
  return table;
}

/// The experiment on what pure neighbours are worth: each partner is of the image's own class with probability
/// method.partner_purity and of another class otherwise, drawn uniformly among such images. It uses the labels, so it is
/// a measurement and no method.
NeighborTable partners_by_label(const Config& config, const Dataset& data, int64_t epoch) {
  const int64_t images = data.size();
  std::vector<std::vector<int32_t>> of_class(static_cast<size_t>(data.class_count()));
  for (int64_t i = 0; i < images; ++i) {
    if (data.label(i) < 0)
      throw UsageError(cat("method.partner = \"labels\" needs a label for every image; image {} of {} has none", i,
                           config.data.train));
    of_class[static_cast<size_t>(data.label(i))].push_back(static_cast<int32_t>(i));
  }
  for (size_t label = 0; label < of_class.size(); ++label)
    if (of_class[label].size() == 1 || static_cast<int64_t>(of_class[label].size()) == images)
      throw UsageError(
          cat("method.partner = \"labels\" needs two classes and two images of each; class {} of {} has {} "
              "of {} images",
              data.class_names()[label], config.data.train, of_class[label].size(), images));
  NeighborTable table{.index = {}, .k = config.method.neighbors};
  for (int64_t i = 0; i < images; ++i) {
    const int label = data.label(i);
    const std::vector<int32_t>& own = of_class[static_cast<size_t>(label)];
    Random random(config.train.seed, Purpose::neighbor, static_cast<uint64_t>(epoch), static_cast<uint64_t>(i), 2);
    for (int j = 0; j < table.k; ++j) {
      const bool same = random.uniform() < config.method.partner_purity;
      int64_t other = i;
      while (other == i || (data.label(other) == label) != same)
        other = same ? own[random.below(static_cast<uint32_t>(own.size()))]
                     : static_cast<int64_t>(random.below(static_cast<uint32_t>(images)));
      table.index.push_back(static_cast<int32_t>(other));
    }
  }
  return table;
}

}  // namespace

FeatureOptions online_feature_options(const Config& config, Comm& comm) {
  FeatureOptions o;
  o.transform = {.resize = config.eval.resize,
                 .size = config.eval.size,
                 .filter = config.eval.interpolation == "bilinear" ? Filter::bilinear : Filter::bicubic};
  o.normalise = config.augment;
  o.batch_size = config.eval.batch_size;
  o.workers = config.data.workers;
  o.max_bad_share = config.data.max_bad_share;
  o.comm = &comm;
  return o;
}

void find_neighbors(Device& device, Comm& comm, RunState& state, BadImageCallback on_bad_image,
                    std::function<bool()> go_on) {
  const Dataset& data = state.data;
  auto table = std::make_shared<NeighborTable>();
  if (state.config.method.partner == "random") {
    *table = random_partners(state.config, data.size(), state.at.epoch);
  } else if (state.config.method.partner == "labels") {
    *table = partners_by_label(state.config, data, state.at.epoch);
  } else {
    FeatureOptions o = online_feature_options(state.config, comm);
    o.on_bad_image = std::move(on_bad_image);
    o.go_on = std::move(go_on);
    // The search of a run in 16 bits multiplies on the matrix units; it is exact for the features so rounded.
    if (compute_type(state.config.train.precision, device) != DType::f32) o.dtype = DType::f16;
    const Features features = extract_features(device, state.method.key_encoder(), data, o);
    *table = nearest_neighbors(features.values, state.config.method.neighbors, nullptr, comm);
  }
  std::vector<int> labels;
  for (int64_t i = 0; i < data.size(); ++i) labels.push_back(data.label(i));
  state.purity = neighbor_purity(*table, labels);
  state.churn = state.neighbors ? neighbor_churn(*state.neighbors, *table) : -1;
  state.neighbors = std::move(table);
}

}  // namespace csml
