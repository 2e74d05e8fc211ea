// Every convolution that the networks ask of the GPU has a cuDNN plan on every card we support, proven without a card:
// cuDNN plans from a description (tests/device). Default: A100 and H200, batch 256; with CSML_PLAN_TEST=all H100 too,
// batch 32, 64 and 512, TF32, and the deterministic rules.
#include "apps/config.h"
#include "apps/presets.h"
#include "csml/method/siamese.h"
#include "kernels/cpu/backend.h"
#include "kernels/cuda/conv_plan.h"

// After the project's headers: doctest's CHECK replaces that of kernels/check.h from here on.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

using namespace csml;
using namespace csml::cuda;

namespace {

/// Notes the convolutions that it is asked for instead of computing them.
class Noting final : public CpuBackend {
 public:
  void conv2d(const Conv2d& a) override {
    note(Direction::forward, a.x.shape, a.w.shape, a.stride, a.pad);
    zero(a.y);
  }
  void conv2d_grad_input(const Conv2dGradInput& a) override {
    note(Direction::grad_input, a.dx.shape, a.w.shape, a.stride, a.pad);
    zero(a.dx);
  }
  void conv2d_grad_weight(const Conv2dGradWeight& a) override {
    note(Direction::grad_weight, a.x.shape, a.dw.shape, a.stride, a.pad);
    zero(a.dw);
  }
  std::vector<ConvShape> shapes;  // each once, of the batch they were asked for

 private:
  void note(Direction direction, const Shape& x, const Shape& w, int stride, int pad) {
    const ConvShape shape{direction, DType::f32, x[0], x[1], x[2], x[3], w[0], w[1], w[2], stride, pad};
    if (std::find(shapes.begin(), shapes.end(), shape) == shapes.end()) shapes.push_back(shape);
  }
  void zero(const View& y) { fill({.y = y, .value = 0}); }
};

/// What an encoder asks for at some sizes of its images, heads of its levels included, on whole maps and, where
/// `config` has them, on windows; forward and backward.
std::vector<ConvShape> convolutions_of(const Config& config, int channels, const std::set<int>& sizes) {
  constexpr int64_t kBatch = 2;
  auto backend = std::make_unique<Noting>();
  const Noting& noting = *backend;
  Device device(std::move(backend));
  const Encoder encoder(device, config.model, channels, 0, true, encoder_parts(config));
  const Tensor labels = Tensor::from(device, {kBatch}, std::vector<int32_t>(kBatch, 0));
  for (const int size : sizes) {
    const Stages stages = encoder.trunk(Var(Tensor::full(device, {kBatch, size, size, channels}, 0.f)), {});
    Var all;
    for (const Level& level : levels_of(config)) {
      const Var map = level.stage == Encoder::kTop ? stages.pooled : stages.stage[static_cast<size_t>(level.stage)];
      const Var out = encoder.head(level.stage, map, {});
      all = all ? add(all, out) : out;
      if (level.window == 0 || size != config.augment.crop_size) continue;
      const Tensor corner = Tensor::from(device, {kBatch, 2}, std::vector<int32_t>(2 * kBatch, 0));
      all = add(all, encoder.head(level.stage, gather_window(map, corner, level.window, level.window), {}));
    }
    cross_entropy(all, labels).backward();
  }
  return noting.shapes;
}

/// What steps of every preset ask for, and of these networks with options that no preset chooses; each once.
const std::vector<ConvShape>& all_convolutions() {
  static const std::vector<ConvShape> all = [] {
    struct Network {
      Config config;
      int channels = 3;
      std::set<int> sizes;
    };
    std::map<std::string, Network> networks;
    const auto add_network = [&](const Config& config, int channels, std::set<int> sizes) {
      const ModelConfig& m = config.model;
      const std::string name =
          cat("{} {} {} {} {}", m.depth, m.stem, m.width, channels, fmt::join(config.method.levels, " "));
      Network& network = networks[name];
      network.config = config;
      network.channels = channels;
      network.sizes.merge(sizes);
    };
    for (const Preset& preset : presets()) {
      ConfigBuilder builder;
      builder.add_preset(preset.name);
      const Config config = builder.build().config;
      std::set<int> sizes{config.augment.crop_size};
      for (const double size : config.method.crop_sizes) sizes.insert(static_cast<int>(size));
      add_network(config, preset.name.starts_with("fashion") ? 1 : 3, sizes);
    }
    Config config;
    config.method.name = "csml";
    config.method.levels = {"res3", "res4", "res5"};
    config.method.alignment = "patch";
    for (const int depth : {18, 50})
      for (const char* stem : {"imagenet", "cifar"}) {
        config.model.depth = depth;
        config.model.stem = stem;
        config.augment.crop_size = config.model.stem == "cifar" ? 32 : 224;
        add_network(config, 3, config.model.stem == "cifar" ? std::set{32, 24, 16} : std::set{224, 96});
      }
    std::vector<ConvShape> shapes;
    for (const auto& [name, network] : networks)
      for (const ConvShape& shape : convolutions_of(network.config, network.channels, network.sizes))
        if (std::find(shapes.begin(), shapes.end(), shape) == shapes.end()) shapes.push_back(shape);
    return shapes;
  }();
  return all;
}

std::string read(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

bool wants_all() {
  const char* value = std::getenv("CSML_PLAN_TEST");
  return value && std::string(value) == "all";
}

/// Whether some candidate makes a plan here. An engine that is compiled with the plan is compiled, then fails at
/// loading into a driver that is not there: not counted, so that what passes needs no benefit of the doubt.
bool has_plan(const ConvShape& shape, const Card& card, PlanRules rules, std::string& why) {
  const ConvGraph graph(shape, card, rules);
  why = cat("{} candidates", graph.candidates());
  ConvPlan plan;
  for (int i = 0; i < graph.candidates(); ++i)
    if (graph.build(i, plan, why)) return true;
  return false;
}

/// nullptr, with a message, where there is no cuDNN or it is too old to plan for a described card.
std::unique_ptr<Card> card_of(const std::string& name) {
  try {
    return std::make_unique<Card>(Card::described(read("tests/device/" + name + ".json")));
  } catch (const Error& error) {
    MESSAGE("skipped: cuDNN 9.8 not present: " << std::string(error.what()));
    return nullptr;
  }
}

}  // namespace

TEST_CASE("the list of convolutions is that of the networks") {
  const std::vector<ConvShape>& all = all_convolutions();
  const int64_t n = all.at(0).n;
  const auto asked = [&](int64_t size, int64_t c, int64_t k, int64_t window, int64_t stride, int64_t pad) {
    std::string directions;
    for (const Direction d : {Direction::forward, Direction::grad_input, Direction::grad_weight}) {
      const ConvShape shape{d, DType::f32, n, size, size, c, k, window, window, stride, pad};
      if (std::find(all.begin(), all.end(), shape) != all.end()) directions += "fiw"[static_cast<int>(d)];
    }
    return directions;
  };
  CHECK(asked(224, 3, 64, 7, 2, 3) == "fw");  // nobody wants the images' gradient
  CHECK(asked(56, 64, 64, 3, 1, 1) == "fiw");
  CHECK(asked(56, 256, 128, 1, 1, 0) == "fiw");   // ResNet-50's second stage
  CHECK(asked(56, 128, 128, 3, 2, 1) == "fiw");   // its stride is on the 3x3
  CHECK(asked(28, 512, 1024, 1, 2, 0) == "fiw");  // a shortcut that skips pixels
  CHECK(asked(7, 512, 2048, 1, 1, 0) == "fiw");   // the last one
  CHECK(asked(8, 256, 512, 3, 2, 1) == "fiw");    // ResNet-18 for CIFAR
  CHECK(asked(192, 3, 64, 7, 2, 3) == "fw");      // small crops
  CHECK(asked(3, 512, 2048, 1, 1, 0) == "fiw");   // the end of one of 96 pixels
  CHECK(asked(28, 1, 16, 3, 1, 1) == "fw");       // gray images, a quarter of the width
  CHECK(asked(8, 1024, 512, 1, 1, 0) == "fiw");   // the head of res4 on a window of 8 x 8
  CHECK(asked(56, 256, 256, 3, 1, 1) == "");
}

TEST_CASE("every convolution has a plan on every card") {
  struct Kind {
    DType dtype;
    PlanRules rules;
  };
  std::vector<Kind> kinds = {{DType::f32, {}}, {DType::bf16, {}}, {DType::f16, {}}};
  std::vector<int64_t> batches = {256};
  std::vector<const char*> cards = {"a100", "h200"};  // an H100 is an H200 with less memory
  if (wants_all()) {
    cards.push_back("h100");
    kinds.push_back({DType::f32, {.tf32 = true}});
    batches.insert(batches.end(), {32, 64, 512});
    for (const Kind& kind : std::vector<Kind>(kinds))
      kinds.push_back({kind.dtype, {.tf32 = kind.rules.tf32, .deterministic = true}});
  }
  int plans = 0;
  for (const char* name : cards) {
    const auto card = card_of(name);
    if (!card) return;
    for (const int64_t n : batches)
      for (ConvShape shape : all_convolutions())
        for (const Kind& kind : kinds) {
          shape.n = n;
          shape.dtype = kind.dtype;
          std::string why;
          const bool found = has_plan(shape, *card, kind.rules, why);
          ++plans;
          CHECK_MESSAGE(found, name << ": " << shape.text() << (kind.rules.tf32 ? " tf32" : "")
                                    << (kind.rules.deterministic ? " deterministic" : "") << ": " << why);
        }
  }
  MESSAGE(plans << " plans");
  CHECK(plans > 500);
}

TEST_CASE("rules are kept") {
  const auto card = card_of("h100");
  if (!card) return;
  const ConvShape conv{Direction::grad_weight, DType::f32, 64, 56, 56, 64, 64, 3, 3, 1, 1};
  const auto names = [&](const ConvShape& shape, PlanRules rules) {
    std::set<std::string> all;
    const ConvGraph graph(shape, *card, rules);
    ConvPlan plan;
    std::string why;
    for (int i = 0; i < graph.candidates(); ++i)
      if (graph.build(i, plan, why)) all.insert(plan.name());
    return all;
  };
  // TF32 and non-deterministic engines exist, and are left out.
  const auto exact = names(conv, {}), tf32 = names(conv, {.tf32 = true}), fixed = names(conv, {.deterministic = true});
  CHECK(exact.size() < tf32.size());
  for (const std::string& name : exact) CHECK(tf32.count(name));
  CHECK(fixed.size() < exact.size());
  for (const std::string& name : fixed) CHECK(exact.count(name));
}

TEST_CASE("what has no plan says so") {
  const auto card = card_of("h100");
  if (!card) return;
  const ConvShape conv{Direction::forward, DType::u8, 64, 56, 56, 64, 64, 3, 3, 1, 1};
  CHECK_THROWS_WITH_AS(ConvGraph(conv, *card, {}), "convolution of u8: must be f32, bf16 or f16", Error);
  CHECK_THROWS_AS(Card::described("{\"deviceName\": 3}"), Error);
}
