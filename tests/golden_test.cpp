// Losses, normalisations, pooling, optimizers, search and colour augmentation against PyTorch, through the engine's
// ops.
#include <array>

#include "csml/evaluation/probe_knn.h"
#include "csml/training/neighbors.h"
#include "engine/ops.h"
#include "engine/optim.h"
#include "models/weights.h"

#include "tests/backend.h"
#include "tests/files.h"
#include "tests/golden.h"

using namespace csml;
using namespace csml::test;

namespace {

/// sum(y * dy) as a scalar: back-propagating it gives y the gradient dy.
Var weighted_sum(const Var& y, const Tensor& dy) {
  const int64_t n = dy.size();
  return reshape(linear(reshape(y, {1, n}), Var(dy.reshape({1, n})), {}), {1});
}

/// A leaf whose gradient starts as NaN: only a written gradient passes.
Var leaf_of(const Tensor& value) { return Var::leaf(value, Tensor::full(value.device(), value.shape(), NAN)); }

void compare_info_nce(Golden& golden, Device& device, const std::string& p, bool through_norm) {
  const Var query = leaf_of(golden.tensor(device, p + "query"));
  const Tensor stacked = golden.tensor(device, p + "positives"), queue = golden.tensor(device, p + "queue");
  const Shape& s = stacked.shape();
  std::vector<Tensor> positives;
  for (int64_t j = 0; j < s[0]; ++j) positives.push_back(stacked.rows(j, 1).reshape({s[1], s[2]}));
  const float temperature = golden.scalar(p + "temperature");
  const auto anchor = [&] { return through_norm ? l2_normalize(query) : query; };

  Similarity similarity;
  const Var loss = info_nce(anchor(), positives, golden.tensor(device, p + "weights"), queue, temperature, &similarity);
  if (golden.contains("err/" + p + "loss")) golden.expect(p + "loss", loss.value());
  if (golden.contains("err/" + p + "positive_similarity")) {
    golden.expect(p + "positive_similarity", similarity.positive);
    golden.expect(p + "negative_similarity", similarity.negative);
  }
  loss.backward();
  golden.expect(p + (through_norm ? "dv" : "dquery"), query.grad());

  std::vector<float> terms;
  for (int64_t j = 0; j < s[0]; ++j) {
    std::vector<float> only(static_cast<size_t>(s[0]), 0.f);
    only[static_cast<size_t>(j)] = 1;
    const NoGrad no_grad;
    terms.push_back(
        info_nce(anchor(), positives, Tensor::from(device, {s[0]}, only), queue, temperature).value().item());
  }
  golden.expect(p + "terms", terms);
}

}  // namespace

TEST_CASE("InfoNCE and its gradient equal PyTorch") {
  const auto device = open_backend();
  Golden golden("losses");
  compare_info_nce(golden, *device, "info_nce/small/", false);
  compare_info_nce(golden, *device, "info_nce/small/", true);
  compare_info_nce(golden, *device, "info_nce/random/", false);
  compare_info_nce(golden, *device, "info_nce/sharp/", false);
  compare_info_nce(golden, *device, "info_nce/unnormalised/", true);
  CHECK(golden.unseen("info_nce/").empty());
}

TEST_CASE("InfoNCE of the hand-computed example") {
  // One query (0.6, 0.8), T = 0.2, positives (1, 0) and (0, 1) at weight 1/2 each, negatives with products -0.6, -0.8,
  // 0:
  //   s = 3 and 4, Z = e^-3 + e^-4 + e^0, loss = ((log(e^3 + Z) - 3) + (log(e^4 + Z) - 4)) / 2
  const auto device = open_backend();
  const Tensor query = Tensor::from(*device, {1, 2}, std::vector<float>{0.6f, 0.8f});
  const std::vector<Tensor> positives = {Tensor::from(*device, {1, 2}, std::vector<float>{1, 0}),
                                         Tensor::from(*device, {1, 2}, std::vector<float>{0, 1})};
  const Tensor queue = Tensor::from(*device, {3, 2}, std::vector<float>{-1, 0, 0, -1, 0.8f, -0.6f});
  const Tensor weights = Tensor::from(*device, {2}, std::vector<float>{0.5f, 0.5f});
  const double z = std::exp(-3.0) + std::exp(-4.0) + 1;
  const double want = ((std::log(std::exp(3.0) + z) - 3) + (std::log(std::exp(4.0) + z) - 4)) / 2;
  CHECK(info_nce(Var(query), positives, weights, queue, 0.2f).value().item() == doctest::Approx(want).epsilon(1e-6));
}

TEST_CASE("cross-entropy equals PyTorch") {
  const auto device = open_backend();
  Golden golden("losses");
  const Var logits = leaf_of(golden.tensor(*device, "cross_entropy/logits"));
  Tensor correct;
  const Var loss = cross_entropy(logits, golden.tensor(*device, "cross_entropy/labels"), &correct);
  golden.expect("cross_entropy/loss", loss.value());
  CHECK(correct.item() == golden.scalar("cross_entropy/correct"));
  loss.backward();
  golden.expect("cross_entropy/dlogits", logits.grad());
  CHECK(golden.unseen("cross_entropy/").empty());
}

TEST_CASE("grouped batch norm equals PyTorch, group by group") {
  const auto device = open_backend();
  Golden golden("splitbn");
  const Tensor momentum = Tensor::full(*device, {1}, 0.9f);
  for (const int groups : {1, 2, 4, 8})
    for (const char* variant : {"plain", "relu", "residual_relu"}) {
      const std::string p = cat("groups{}/{}/", groups, variant);
      const bool has_residual = golden.contains(p + "residual");
      const Var x = leaf_of(golden.tensor(*device, p + "x")), gamma = leaf_of(golden.tensor(*device, p + "gamma")),
                beta = leaf_of(golden.tensor(*device, p + "beta"));
      const Var residual = has_residual ? leaf_of(golden.tensor(*device, p + "residual")) : Var();
      const BatchNormOptions options{.groups = groups,
                                     .relu = std::string(variant) != "plain",
                                     .batch_mean = like(gamma.value()),
                                     .batch_var = like(gamma.value())};
      const Var y = batch_norm(x, gamma, beta, residual, options);
      golden.expect(p + "y", y.value());
      weighted_sum(y, golden.tensor(*device, p + "dy")).backward();
      golden.expect(p + "dx", x.grad());
      golden.expect(p + "dgamma", gamma.grad());
      golden.expect(p + "dbeta", beta.grad());
      if (has_residual) golden.expect(p + "dresidual", residual.grad());
      for (const auto& [name, batch] :
           {std::pair{"running_mean", options.batch_mean}, {"running_var", options.batch_var}}) {
        const Tensor running = golden.tensor(*device, p + name);
        ema(batch, running, momentum);
        golden.expect(p + name + "_after", running);
      }
    }
  CHECK(golden.unseen().empty());
}

TEST_CASE("pooling equals PyTorch, ties included") {
  const auto device = open_backend();
  Golden golden("pooling");
  const Var x = leaf_of(golden.tensor(*device, "x"));
  const Var y = max_pool(x, 3, 2, 1);
  golden.expect("max/y", y.value());
  weighted_sum(y, golden.tensor(*device, "max/dy")).backward();
  golden.expect("max/dx", x.grad());
  golden.expect("mean/y", global_avg_pool(x).value());
  for (const std::string& name : golden.unseen()) CHECK(name == "max/dy");  // an input here
}

TEST_CASE("SGD, AdamW and LARS equal PyTorch over three steps") {
  const auto device = open_backend();
  Golden golden("optim");
  const OptimizerOptions sgd{.kind = "sgd", .momentum = 0.9f, .weight_decay = 1e-2f};
  const OptimizerOptions adamw{.kind = "adamw", .weight_decay = 0.05f, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f};
  const OptimizerOptions lars{.kind = "lars", .momentum = 0.9f, .weight_decay = 1e-2f, .trust = 1e-2f};
  struct Case {
    std::string name;
    OptimizerOptions options;
    float rate;
    std::vector<std::string> state;  // golden names in the order of Optimizer::state()
  };
  for (const Case& c : {Case{"sgd/", sgd, 0.3f, {"buffer"}}, Case{"adamw/", adamw, 0.01f, {"first", "second"}},
                        Case{"lars_moco_v3/", lars, 0.3f, {"buffer"}}}) {
    Params params(*device);
    params.add("w0", {4, 3, 3, 3}, Init::constant(0));
    params.add("w1", {7, 5}, Init::constant(0));
    params.add("w2", {3, 4}, Init::constant(0));
    params.add("bias", {6}, Init::constant(0));
    params.build(0, true);
    from_host(params, golden.arrays("param/"), "param/");
    const auto optimizer = Optimizer::make(params, c.options);
    const Tensor rate = Tensor::full(*device, {1}, c.rate);
    const Tensor yes = Tensor::from(*device, {1}, std::vector<int32_t>{1}),
                 no = Tensor::from(*device, {1}, std::vector<int32_t>{0});
    for (int i = 0; i < 3; ++i) {
      from_host(params, golden.arrays(cat("grad{}/", i)), cat("grad{}/", i), params.grad());
      const std::vector<float> before = params.master().host<float>();
      const std::vector<float> state_before = optimizer->state()[0].second.host<float>();
      optimizer->step({.learning_rate = rate, .finite = no});
      CHECK(params.master().host<float>() == before);
      CHECK(optimizer->state()[0].second.host<float>() == state_before);
      optimizer->step({.learning_rate = rate, .finite = i == 1 ? Tensor() : yes});
      golden.expect_all(cat("{}{}/param/", c.name, i), to_host(params, "", params.master()));
      for (size_t s = 0; s < c.state.size(); ++s)
        golden.expect_all(cat("{}{}/{}/", c.name, i, c.state[s]), to_host(params, "", optimizer->state()[s].second));
    }
    CHECK(golden.unseen(c.name).empty());
    // The gaps between parameters stay zero.
    std::vector<float> flat = params.master().host<float>();
    for (const Params::Entry& e : params.entries()) std::fill_n(flat.begin() + e.offset, e.shape.size(), 0.f);
    for (const float value : flat) CHECK(value == 0);
  }
}

TEST_CASE("exact search equals NumPy: order, ties, exclusions") {
  const auto device = open_backend();
  Golden golden("knn");
  const Tensor bank = golden.tensor(*device, "bank"), queries = golden.tensor(*device, "queries");
  const TopKResult found = top_k(queries, bank, 5, golden.tensor(*device, "exclude"));
  CHECK(found.index.host<int32_t>() == golden.values<int32_t>("index"));
  golden.expect("scores", found.scores);

  const std::vector<float> scores = found.scores.host<float>();
  const std::vector<int32_t> index = found.index.host<int32_t>(), labels = golden.values<int32_t>("labels"),
                             exclude = golden.values<int32_t>("exclude"),
                             prediction = golden.values<int32_t>("prediction");
  std::vector<float> votes;
  for (size_t i = 0; i < exclude.size(); ++i) {
    std::array<double, 3> sums{};
    for (size_t j = i * 5; j < i * 5 + 5; ++j)
      sums[static_cast<size_t>(labels[static_cast<size_t>(index[j])])] += std::exp(scores[j] / 0.07);
    votes.insert(votes.end(), sums.begin(), sums.end());
  }
  golden.expect("votes", votes);

  // The classifier, where nothing is excluded: right exactly where the predicted class is the label.
  const Features train{.values = bank, .labels = {labels.begin(), labels.end()}};
  for (size_t i = 0; i < exclude.size(); ++i) {
    if (exclude[i] >= 0) continue;
    for (int label = 0; label < 3; ++label) {
      const Features test{.values = queries.rows(static_cast<int64_t>(i), 1), .labels = {label}};
      const KnnResult result = knn_classify(train, test, 3, {5}, 0.07).at(0);
      CHECK(result.top1 == (label == prediction[i] ? 100 : 0));
      CHECK(result.top5 == 100);
    }
  }
}

TEST_CASE("a row is never its own neighbour, not even among equal rows") {
  const auto device = open_backend();
  const Golden golden("knn");
  const Tensor bank = golden.tensor(*device, "bank");  // rows 17 and 41 are equal
  std::vector<float> similarity;
  const NeighborTable table = nearest_neighbors(bank, 4, &similarity);
  const std::vector<float> x = bank.host<float>();
  for (int i = 0; i < 60; ++i) {
    std::vector<std::pair<double, int>> others;
    for (int j = 0; j < 60; ++j) {
      double dot = 0;
      for (int d = 0; d < 16; ++d)
        dot += double{x[static_cast<size_t>(i * 16 + d)]} * x[static_cast<size_t>(j * 16 + d)];
      if (j != i) others.emplace_back(-dot, j);
    }
    std::sort(others.begin(), others.end());
    for (int j = 0; j < 4; ++j) {
      const size_t at = static_cast<size_t>(i * 4 + j);
      CHECK(table.index[at] == others[static_cast<size_t>(j)].second);
      CHECK(similarity[at] == doctest::Approx(-others[static_cast<size_t>(j)].first).epsilon(1e-5));
    }
  }
  CHECK(table.index[17 * 4] == 41);
  CHECK(table.index[41 * 4] == 17);
  CHECK(neighbor_churn(table, table) == 0);
  NeighborTable reversed = table;
  for (size_t i = 0; i < 60; ++i) std::reverse(reversed.index.begin() + 4 * i, reversed.index.begin() + 4 * i + 4);
  CHECK(neighbor_churn(table, reversed) == 0);
  reversed.index[0] = reversed.index[0] == 59 ? 58 : 59;
  while (std::count(table.index.begin(), table.index.begin() + 4, reversed.index[0])) --reversed.index[0];
  CHECK(neighbor_churn(table, reversed) == doctest::Approx(1.0 / 240));
  std::vector<int> labels(60, 0);
  CHECK(neighbor_purity(table, labels) == 1);
  std::fill(labels.begin(), labels.end(), -1);
  CHECK(neighbor_purity(table, labels) == -1);
}

TEST_CASE("colour augmentation equals PyTorch, operation by operation and chained") {
  const auto device = open_backend();
  Golden golden("augment");
  std::vector<std::string> cases{"chain/", "chain_one_channel/"};
  for (const char* name :
       {"brightness", "contrast", "saturation", "hue", "gray", "blur", "solarize", "flip", "normalise"})
    cases.push_back(cat("op/{}/", name));
  for (const std::string& p : cases) {
    std::array<float, 4> mean{}, std{1, 1, 1, 1};
    const std::vector<float> m = golden.values(p + "mean"), s = golden.values(p + "std");
    std::copy(m.begin(), m.end(), mean.begin());
    std::copy(s.begin(), s.end(), std.begin());
    const Tensor images = golden.tensor(*device, p + "images"), y(*device, images.shape());
    augment(images, golden.tensor(*device, p + "params"), y, mean, std);
    golden.expect(p + "y", y);
  }
  CHECK(golden.unseen().empty());
}
