// MoCo and CsMl as losses: whole steps against PyTorch, CsMl's limits that are MoCo, the weights' warm-up.
#include "tests/backend.h"
#include "tests/method_fixture.h"

using namespace csml;
using namespace csml::test;

namespace {

void compare_steps(const std::string& name) {
  const auto device = open_backend();
  Golden golden(name + "_steps");
  const bool csml = name == "csml";
  const auto method = make(*device, golden_config(name));
  const Params& q = method->query_encoder().params();
  const Params& k = method->key_encoder().params();
  for (int i = 0; i < 3; ++i) {
    const std::string step = cat("step{}/", i), before = cat("state{}/", i), after = cat("state{}/", i + 1);
    Siamese::Given given = constants(golden, step, csml);
    given.learning_rate = 0.06f;
    for (const std::string& v : view_names(name)) given.images.push_back(golden.tensor(*device, step + "view_" + v));
    auto run = [&] {
      set_state(*method, golden, before);
      method->load_given(given);
      method->step();
      return method->measure(1);
    };
    const nlohmann::json log = run();
    CHECK(log["finite"].get<bool>());
    golden.expect(step + "loss", {log["loss"].get<float>()});
    golden.expect_all(step + "grad/", to_host(q, "", q.grad()));
    golden.expect_all(after + "q/", to_host(q, ""));
    golden.expect_all(after + "k/", to_host(k, ""));
    golden.expect_all(after + "momentum/", to_host(q, "", state_of(*method, "optimizer.momentum")));
    const std::vector<float> queue = method->queue().rows().host<float>();
    golden.expect(after + "queue", queue);
    CHECK(method->queue().cursor().host<int64_t>() == golden.values<int64_t>(after + "ptr"));
    const size_t from = static_cast<size_t>(golden.values<int64_t>(before + "ptr").at(0));
    std::vector<float> keys;
    for (size_t row = 0; row < kBatch; ++row)
      keys.insert(keys.end(), queue.begin() + static_cast<std::ptrdiff_t>((from + row) % 20 * 16),
                  queue.begin() + static_cast<std::ptrdiff_t>((from + row) % 20 * 16 + 16));
    golden.expect(step + "keys", keys);
    if (!csml) {
      golden.expect(step + "loss_terms", {log["loss_terms"]["q"].get<float>()});
      continue;
    }
    auto terms = [](const nlohmann::json& l) {
      return std::vector<float>{l["loss_terms"]["q"].get<float>(), l["loss_terms"]["p"].get<float>(),
                                l["loss_terms"]["m"].get<float>()};
    };
    golden.expect(step + "loss_views", terms(log));
    // Each cross-entropy alone: all weight on the own key, then all on the partner's.
    given.weights = {1, 0};
    given.lambda = 1;
    const std::vector<float> own = terms(run());
    given.weights = {0, 1};
    given.lambda = 0;
    const std::vector<float> other = terms(run());
    golden.expect(step + "loss_terms", {own[0], other[0], own[1], other[1], own[2], other[2]});
  }
  CHECK(golden.unseen().empty());
}

void compare_ten(const std::string& name) {
  const auto device = open_backend();
  const Golden start(name + "_steps");
  Golden golden(name + "_ten", 16, 1e-5);
  const auto method = make(*device, golden_config(name));
  set_state(*method, start, "state0/");
  std::vector<float> losses;
  for (int i = 0; i < 10; ++i) {
    Siamese::Given given = constants(golden, cat("{}/", i), name == "csml");
    given.learning_rate = 0.001f;
    for (const std::string& v : view_names(name))
      given.images.push_back(hashed_view(*device, cat("{}/ten/{}/view_{}", name, i, v)));
    method->load_given(given);
    method->step();
    losses.push_back(method->measure(1)["loss"].get<float>());
  }
  golden.expect("loss", losses);
  golden.expect_all("final/q/", to_host(method->query_encoder().params(), ""));
  golden.expect_all("final/k/", to_host(method->key_encoder().params(), ""));
  golden.expect("final/queue", method->queue().rows());
  CHECK(method->queue().cursor().host<int64_t>() == golden.values<int64_t>("final/ptr"));
  CHECK(golden.unseen().empty());
}

}  // namespace

TEST_CASE("three MoCo steps equal PyTorch, each from a shared state") { compare_steps("moco"); }
TEST_CASE("three CsMl steps equal PyTorch, each from a shared state") { compare_steps("csml"); }
TEST_CASE("ten MoCo steps in a row equal PyTorch") { compare_ten("moco"); }
TEST_CASE("ten CsMl steps in a row equal PyTorch") { compare_ten("csml"); }

TEST_CASE("CsMl with weights (1, 0), no box, p = q and kp = k is MoCo's loss and gradient") {
  const auto device = open_backend();
  const auto moco = make(*device, golden_config("moco")), csml = make(*device, golden_config("csml"));
  Siamese::Given given = simple(*device, {"q", "k"});
  given.permutations = {given.permutations[0], given.permutations[0]};
  given.box = {5, 5, 5, 5};
  given.lambda = 1;
  given.weights = {1, 0};
  moco->load_given(given);
  moco->step();
  given.images = {given.images[0], given.images[1], given.images[0], given.images[1]};
  csml->load_given(given);
  csml->step();
  const double want = moco->measure(1)["loss"].get<double>();
  CHECK(csml->measure(1)["loss"].get<double>() == doctest::Approx(want).epsilon(1e-6));
  CHECK(relative_difference(csml->query_encoder().params().grad(), moco->query_encoder().params().grad()) < 1e-4);
  CHECK(relative_difference(csml->queue().rows(), moco->queue().rows()) == 0);
}

TEST_CASE("each of CsMl's inputs matters") {
  const auto device = open_backend();
  auto gradient = [&](const std::function<void(Siamese::Given&)>& change) {
    const auto method = make(*device, golden_config("csml"));
    Siamese::Given given = simple(*device, {"q", "k", "p", "kp"});
    change(given);
    method->load_given(given);
    method->step();
    return method->query_encoder().params().grad().host<float>();
  };
  const std::vector<float> base = gradient([](auto&) {});
  CHECK(gradient([](auto&) {}) == base);
  for (size_t v = 0; v < 4; ++v)
    CHECK(gradient([&](auto& g) { g.images[v] = hashed_view(*device, "another"); }) != base);
  CHECK(gradient([](auto& g) { g.box = {2, 3, 9, 13}; }) != base);
  CHECK(gradient([](auto& g) { g.lambda = 0.6f; }) != base);
  CHECK(gradient([](auto& g) { g.weights = {0.4f, 0.6f}; }) != base);
  CHECK(gradient([](auto& g) { g.permutations[1] = identity(); }) != base);
}

TEST_CASE("CsMl with the first term alone and weights (1, 0) is MoCo, bit for bit, step after step") {
  const auto device = open_backend();
  Config config = golden_config("csml");
  config.method.terms = {"q"};
  config.method.weights = config.method.warmup_weights = {1, 0};
  const auto csml = make(*device, config), moco = make(*device, golden_config("moco"));
  CHECK_FALSE(csml->needs_neighbors());
  REQUIRE(csml->views().size() == moco->views().size());
  Feed csml_feed(*csml, config), moco_feed(*moco, config);
  const auto start = snapshot(*moco);
  for (int step = 0; step < 7; ++step) {
    csml_feed.load(*csml, step);
    moco_feed.load(*moco, step);
    csml->step();
    moco->step();
    const nlohmann::json a = csml->measure(1), b = moco->measure(1);
    CHECK(a["loss"] == b["loss"]);
    CHECK(a["positive_similarity"] == b["positive_similarity"]);
    CHECK(changes(snapshot(*csml), snapshot(*moco)) == "");
  }
  for (const auto& [name, bytes] : snapshot(*moco)) CHECK_MESSAGE(bytes != start.at(name), name);  // everything moves
}

TEST_CASE("the first step's weights follow the warm-up and then the configuration") {
  const auto device = open_backend();
  Config config = golden_config("csml");
  config.method.warmup_epochs = 1;
  config.method.weights = {0.25, 0.75};
  const auto method = make(*device, config);
  Feed feed(*method, config);
  for (int64_t step = 0; step < 7; ++step) {
    feed.load(*method, step);
    method->step();
    const nlohmann::json log = method->measure(1);
    CHECK(log["weights"] == (step < 5 ? nlohmann::json{1.0, 0.0} : nlohmann::json{0.25, 0.75}));
    CHECK(log["lambda"].get<double>() >= 0);
    CHECK(log["lambda"].get<double>() <= 1);
    CHECK(log["chance"].get<double>() == doctest::Approx(std::log(21.0)));
  }
  for (const int64_t neighbor : feed.batch.neighbors) CHECK(neighbor >= 0);
}

TEST_CASE("an unknown method is refused") {
  const auto device = open_backend();
  Config config = golden_config("moco");
  config.method.name = "swav";
  CHECK_THROWS_WITH_AS(make_method(*device, config, 3),
                       "method 'swav' is unknown; use csml, moco, simclr, byol or mocov3", UsageError);
  config.method.name = "csml";
  CHECK(make_method(*device, config, 3)->needs_neighbors());
  config.method.name = "moco";
  CHECK_FALSE(make_method(*device, config, 3)->needs_neighbors());
}
