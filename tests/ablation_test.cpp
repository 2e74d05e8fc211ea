// Keys of the ablations whose effect no golden step shows: draws, partners, windows, heads, and the loss of chance.
#include "csml/method/resolve.h"
#include "csml/method/siamese.h"
#include "csml/training/neighbors.h"
#include "csml/training/refresh.h"
#include "models/weights.h"

#include "tests/run_fixture.h"

#include <set>

using namespace csml;
using namespace csml::test;

namespace {

StepDraw drawn(const Config& config, int64_t step, int epoch) {
  return plan_of(config).draw(config, {.step = step, .epoch = epoch, .progress = static_cast<double>(epoch)});
}

Config with_levels(const std::string& method) {
  Config c = tiny(method, 4);
  c.method.levels = {"res4", "res5"};
  c.method.level_weights = {0.5, 1};
  return c;
}

/// The first line of a run's log.
nlohmann::json first_step(Config config) {
  const Folder folder;
  config.train.max_steps = 1;
  config.eval.knn_every_epochs = 0;
  resolve(config);
  run(config, folder.path);
  return metrics(folder.path, "step").at(0);
}

}  // namespace

TEST_CASE("method.cutmix_alpha shapes the share that CutMix leaves") {
  // Boxes that leave the image are cut, which moves their mean, but not from one alpha to the next.
  const auto deviation = [](double alpha) {
    Config c = tiny("csml", 4);
    c.augment.crop_size = 224;
    c.method.cutmix_alpha = alpha;
    double sum = 0, squares = 0;
    constexpr int kSteps = 2000;
    for (int step = 0; step < kSteps; ++step) {
      const StepDraw draw = drawn(c, step, 3);
      CHECK(draw.mixed == std::vector<float>{draw.lambda, 1 - draw.lambda});
      sum += draw.lambda;
      squares += double{draw.lambda} * draw.lambda;
    }
    const double mean = sum / kSteps;
    return std::sqrt(squares / kSteps - mean * mean);
  };
  const double wide = deviation(0.2), uniform = deviation(1), usual = deviation(2), narrow = deviation(50);
  CHECK(wide > uniform);
  CHECK(uniform > usual);
  CHECK(usual > narrow);
  CHECK(narrow < 0.12);  // what is left is the cutting: Beta(50, 50) itself deviates by 0.05
}

TEST_CASE("method.warmup_gates_mixed keeps the mixed term out of the warm-up, and out of nothing else") {
  Config c = tiny("csml", 4);
  c.method.warmup_epochs = 2;
  c.method.warmup_weights = {1, 0};
  c.method.weights = {0.7, 0.3};
  for (const bool gates : {false, true}) {
    c.method.warmup_gates_mixed = gates;
    const StepDraw warm = drawn(c, 5, 1), after = drawn(c, 5, 2);
    CHECK(warm.pair == std::vector<float>{1, 0});
    CHECK(after.pair == std::vector<float>{0.7f, 0.3f});
    CHECK(after.mixed == std::vector<float>{after.lambda, 1 - after.lambda});
    CHECK(warm.mixed == (gates ? std::vector<float>{0, 0} : after.mixed));
  }
  CHECK(first_step(c)["loss_terms"]["m"] == 0);
  c.method.warmup_gates_mixed = false;
  CHECK(first_step(c)["loss_terms"]["m"] > 0);
}

TEST_CASE("method.partner = random draws any other image, anew at each refresh") {
  Config config = tiny("csml", 4);
  config.method.partner = "random";
  const auto data = open_dataset(config.data.train);
  const auto device = open_backend();
  const auto comm = Comm::local();
  const auto method = make_method(*device, config, data->channels(), *comm);
  RunState state(config, *data, *method);
  std::set<int> seen;
  std::vector<std::vector<int32_t>> tables;
  for (state.at.epoch = 0; state.at.epoch < 6; state.at.epoch += 2) {
    find_neighbors(*device, *comm, state, {}, {});
    REQUIRE(state.neighbors->index.size() == 80 * 3);
    for (size_t i = 0; i < 80; ++i)
      for (size_t j = 0; j < 3; ++j) {
        const int other = state.neighbors->index[3 * i + j];
        CHECK((other >= 0 && other < 80 && other != static_cast<int>(i)));
        seen.insert(other);
      }
    tables.push_back(state.neighbors->index);
    CHECK(state.purity < 0.2);  // chance is 0.1
    if (state.at.epoch > 0) CHECK(state.churn > 0.9);
  }
  CHECK(seen.size() == 80);
  CHECK(tables[0] != tables[1]);
  state.at.epoch = 0;
  find_neighbors(*device, *comm, state, {}, {});
  CHECK(state.neighbors->index == tables[0]);  // of the seed and the epoch alone
  config.method.partner = "neighbor";
  find_neighbors(*device, *comm, state, {}, {});
  CHECK(state.neighbors->index != tables[0]);
}

TEST_CASE("the table is renewed where the warm-up ends, but for one that is already a trained encoder's") {
  Config config = tiny("csml", 4);
  const auto data = open_dataset(config.data.train);
  const auto device = open_backend();
  const auto method = make_method(*device, config, data->channels());
  const auto refreshes = [&](int warmup, int every) {
    config.method.warmup_epochs = warmup;
    config.method.refresh_epochs = every;
    RunState state(config, *data, *method);
    std::vector<int> epochs;
    for (state.at.epoch = 0; state.at.epoch < 12; ++state.at.epoch)
      if (state.refresh_due()) epochs.push_back(static_cast<int>(state.at.epoch));
    return epochs;
  };
  CHECK(refreshes(2, 5) == std::vector{0, 2, 5, 10});
  CHECK(refreshes(0, 5) == std::vector{0, 5, 10});
  CHECK(refreshes(5, 5) == std::vector{0, 5, 10});
  CHECK(refreshes(11, 5) == std::vector{0, 5, 10});  // the authors' released experiment
}

TEST_CASE("method.partner = labels draws partners with the asked share of the image's own class") {
  Config config = tiny("csml", 4);
  config.method.partner = "labels";
  config.method.neighbors = 25;
  const auto data = open_dataset(config.data.train);
  const auto device = open_backend();
  const auto comm = Comm::local();
  const auto method = make_method(*device, config, data->channels(), *comm);
  for (const double share : {0.0, 0.4, 1.0}) {
    config.method.partner_purity = share;
    RunState state(config, *data, *method);
    find_neighbors(*device, *comm, state, {}, {});
    // 2,000 draws: four standard deviations of a share of 0.4 are 0.044.
    CHECK(std::abs(state.purity - share) <= (share == 0.4 ? 0.044 : 0.0));
    for (size_t i = 0; i < state.neighbors->index.size(); ++i)
      CHECK(state.neighbors->index[i] != static_cast<int>(i / 25));
    const std::vector<int32_t> first = state.neighbors->index;
    find_neighbors(*device, *comm, state, {}, {});
    CHECK(state.neighbors->index == first);  // the seed and the epoch alone decide
    state.at.epoch = 2;
    find_neighbors(*device, *comm, state, {}, {});
    CHECK(state.neighbors->index != first);
  }
  config.data.train += "&labels=none";
  const auto unlabelled = open_dataset(config.data.train);
  RunState state(config, *unlabelled, *method);
  CHECK_THROWS_WITH_AS(find_neighbors(*device, *comm, state, {}, {}), doctest::Contains("needs a label"), UsageError);
}

TEST_CASE("method.patch_stride is the step of the search for a window") {
  Config c = with_levels("moco");
  c.method.alignment = "patch";
  c.method.patch_window = 2;
  std::set<double> losses;
  for (const int stride : {1, 2}) {  // res4 of 16 pixels is 4 x 4: 9 windows, or 4
    c.method.patch_stride = stride;
    CHECK(levels_of(c).at(1).stride == stride);
    losses.insert(first_step(c)["loss"].get<double>());
  }
  CHECK(losses.size() == 2);
}

TEST_CASE("model.level_blocks is the number of blocks in a lower level's head") {
  for (const int blocks : {1, 2, 3}) {
    Config c = with_levels("moco");
    c.model.level_blocks = blocks;
    const auto device = open_backend();
    const Encoder encoder(*device, c.model, 3, 1, false, encoder_parts(c));
    std::set<std::string> found;
    for (const NamedArray& a : to_host(encoder.params(), ""))
      if (a.name.starts_with("heads.res4.") && a.name.ends_with(".conv1.weight")) found.insert(a.name);
    CHECK(static_cast<int>(found.size()) == blocks);
  }
}

TEST_CASE("the loss of chance weighs levels and small crops as the loss does") {
  Config c = with_levels("moco");
  const double one = std::log(73.0);  // one positive among 72 rows of the queue
  CHECK(first_step(c)["chance"].get<double>() == doctest::Approx(1.5 * one));
  c.method.crop_sizes = {12, 8};
  c.method.crop_counts = {1, 2};
  c.method.crop_weights = {0.5, 0.25};
  // res5: 0.5 of its full views and 0.25 of each of three crops; res4, which crops do not reach: 0.5 of 0.5.
  CHECK(first_step(c)["chance"].get<double>() == doctest::Approx((0.5 + 3 * 0.25 + 0.5 * 0.5) * one));
  const nlohmann::json line = first_step(c);
  double loss = 0.5 * line["loss_levels"]["res5"].get<double>() + 0.25 * line["loss_levels"]["res4"].get<double>();
  for (const auto& [term, value] : line["loss_terms"].items())
    if (term.starts_with("crop")) loss += 0.25 * value.get<double>();
  CHECK(line["loss"].get<double>() == doctest::Approx(loss).epsilon(1e-5));
}
