// Every convolution that the networks ask of the GPU has a cuDNN plan on every card we support, proven without a card:
// cuDNN plans from a description (tests/device). Default: A100 and H200, batch 256; with CSML_PLAN_TEST=all H100 too,
// batch 32 and 64, TF32, and the deterministic rules.
#include "kernels/cuda/conv_plan.h"

// After the project's headers: doctest's CHECK replaces that of kernels/check.h from here on.
#include <doctest/doctest.h>

#include <cstdlib>
#include <fstream>
#include <set>
#include <sstream>
#include <tuple>

using namespace csml;
using namespace csml::cuda;

namespace {

struct Filter {
  int64_t size, c, k, window, stride, pad;  // size: of the square input image
  bool operator<(const Filter& o) const {
    return std::tie(size, c, k, window, stride, pad) < std::tie(o.size, o.c, o.k, o.window, o.stride, o.pad);
  }
};

using Filters = std::set<Filter>;

/// The convolutions of a ResNet (He et al. 2016; bottlenecks with the stride on the 3x3, as torchvision) whose first
/// stage works at `size`.
void add_stages(Filters& all, bool bottleneck, int64_t size) {
  int64_t c = 64;
  for (int64_t width = 64, stride = 1; width <= 512; width *= 2, stride = 2) {
    const int64_t out = bottleneck ? 4 * width : width;
    for (int block = 0; block < 2; ++block, stride = 1) {
      if (bottleneck) {
        all.insert({size, c, width, 1, 1, 0});
        all.insert({size, width, width, 3, stride, 1});
      } else {
        all.insert({size, c, width, 3, stride, 1});
      }
      if (block == 0 && (stride > 1 || c != out)) all.insert({size, c, out, 1, stride, 0});
      size /= stride;
      if (bottleneck)
        all.insert({size, width, out, 1, 1, 0});
      else
        all.insert({size, width, width, 3, 1, 1});
      c = out;
    }
  }
}

Filters all_filters() {
  Filters all;
  for (const bool bottleneck : {false, true}) {
    all.insert({224, 3, 64, 7, 2, 3});  // the stem for ImageNet, then a pooling
    add_stages(all, bottleneck, 56);
    all.insert({32, 3, 64, 3, 1, 1});  // for CIFAR
    add_stages(all, bottleneck, 32);
  }
  all.insert({28, 1, 64, 3, 1, 1});  // gray images
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
  const Filters all = all_filters();
  CHECK(all.count({56, 64, 64, 3, 1, 1}));
  CHECK(all.count({56, 256, 128, 1, 1, 0}));   // ResNet-50's second stage
  CHECK(all.count({56, 128, 128, 3, 2, 1}));   // its stride is on the 3x3
  CHECK(all.count({28, 512, 1024, 1, 2, 0}));  // a shortcut that skips pixels
  CHECK(all.count({7, 512, 2048, 1, 1, 0}));   // the last one
  CHECK(all.count({8, 256, 512, 3, 2, 1}));    // ResNet-18 for CIFAR
  CHECK(!all.count({56, 256, 256, 3, 1, 1}));
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
    batches.insert(batches.end(), {32, 64});
    for (const Kind& kind : std::vector<Kind>(kinds))
      kinds.push_back({kind.dtype, {.tf32 = kind.rules.tf32, .deterministic = true}});
  }
  int plans = 0;
  for (const char* name : cards) {
    const auto card = card_of(name);
    if (!card) return;
    for (const int64_t n : batches)
      for (const Filter& f : all_filters())
        for (const Kind& kind : kinds)
          for (const Direction direction : {Direction::forward, Direction::grad_input, Direction::grad_weight}) {
            if (direction == Direction::grad_input && f.c < 64) continue;  // nobody wants the images' gradient
            const ConvShape shape{direction, kind.dtype, n,        f.size,   f.size, f.c,
                                  f.k,       f.window,   f.window, f.stride, f.pad};
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
