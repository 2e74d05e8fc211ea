// MoCo and CsMl: whole steps against PyTorch, CsMl's limits that are MoCo, queues of odd sizes, steps that change
// nothing, shuffled batch-norm groups, recorded steps.
#include <cstdlib>
#include <cstring>
#include <numeric>

#include "csml/siamese.h"
#include "data/dataset.h"
#include "engine/step.h"
#include "models/weights.h"

#include "tests/files.h"
#include "tests/golden.h"

using namespace csml;
using namespace csml::test;

namespace {

constexpr int64_t kBatch = 8, kSize = 16;

/// The configuration of the golden steps (tests/golden/README.md).
Config golden_config(const std::string& method) {
  Config c;
  c.augment.crop_size = kSize;
  c.model = {.depth = 18, .stem = "cifar", .width = 2, .head_hidden = 0, .head_mlp = true, .dim = 16};
  c.method.name = method;
  c.method.momentum = 0.99;
  c.method.temperature = 0.2;
  c.method.queue = 20;
  c.method.bn_group_size = 4;
  c.optimizer.weight_decay = 5e-4f;
  c.train.batch_size = kBatch;
  resolve(c);
  return c;
}

std::unique_ptr<Siamese> make(Device& device, const Config& config) {
  return std::make_unique<Siamese>(device, config, 3, plan_of(config));
}

Tensor state_of(const Method& method, const std::string& name) {
  for (const auto& [key, tensor] : method.state())
    if (key == name) return tensor;
  FAIL(cat("no state '{}'", name));
  return {};
}

/// Everything a step may change, by name. Bytes, so that NaN equals itself.
std::map<std::string, std::vector<std::byte>> snapshot(Method& method) {
  std::map<std::string, std::vector<std::byte>> all;
  auto put = [&](const std::string& name, const Tensor& t) {
    all[name].resize(t.bytes());
    t.download_bytes(all[name].data());
  };
  // Flat buffers whole, gaps included: those must stay zero, or equal runs would not be equal.
  put("q parameters", method.query_encoder().params().master());
  put("q statistics", method.query_encoder().params().buffers());
  put("k parameters", method.key_encoder().params().master());
  put("k statistics", method.key_encoder().params().buffers());
  for (const auto& [name, tensor] : method.state()) put(name, tensor);
  return all;
}

/// Names whose bytes differ, separated by commas.
std::string changes(const std::map<std::string, std::vector<std::byte>>& a,
                    const std::map<std::string, std::vector<std::byte>>& b) {
  std::string names;
  for (const auto& [name, bytes] : a)
    if (b.at(name) != bytes) names += (names.empty() ? "" : ", ") + name;
  return names;
}

void set_state(Method& method, const Golden& golden, const std::string& p) {
  const Params& q = method.query_encoder().params();
  CHECK(from_host(q, golden.arrays(p + "q/"), p + "q/").empty());
  CHECK(from_host(method.key_encoder().params(), golden.arrays(p + "k/"), p + "k/").empty());
  from_host(q, golden.arrays(p + "momentum/"), p + "momentum/", state_of(method, "optimizer.momentum"));
  state_of(method, "queue.res5").upload(golden.values(p + "queue"));
  state_of(method, "queue.res5.cursor").upload(golden.values<int64_t>(p + "ptr"));
}

/// The method's view names in the order of its inputs; key views are those with a permutation.
std::vector<std::string> view_names(const std::string& method) {
  return method == "moco" ? std::vector<std::string>{"q", "k"} : std::vector<std::string>{"q", "k", "p", "kp"};
}

/// What a golden step is given, but for its images.
Siamese::Given constants(const Golden& golden, const std::string& p, bool csml) {
  Siamese::Given given;
  given.permutations.push_back(golden.values<int32_t>(p + "perm_k"));
  if (!csml) return given;
  given.permutations.push_back(golden.values<int32_t>(p + "perm_kp"));
  const std::vector<int32_t> box = golden.values<int32_t>(p + "box");
  std::copy(box.begin(), box.end(), given.box.begin());
  given.lambda = golden.scalar(p + "lambda");
  given.weights = golden.values(p + "weights");
  return given;
}

void compare_steps(const std::string& name) {
  const auto device = Device::open("cpu");
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

/// f32(3.4 u - 1.7) with u from the hash of a name.
Tensor hashed_view(Device& device, const std::string& name) {
  std::vector<float> values(kBatch * kSize * kSize * 3);
  const uint64_t seed = fnv(name);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(3.4 * hash_uniform(seed, i) - 1.7);
  return Tensor::from(device, {kBatch, kSize, kSize, 3}, values);
}

void compare_ten(const std::string& name) {
  const auto device = Device::open("cpu");
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

std::vector<int32_t> identity(int64_t n = kBatch) {
  std::vector<int32_t> p(static_cast<size_t>(n));
  std::iota(p.begin(), p.end(), 0);
  return p;
}

Siamese::Given simple(Device& device, const std::vector<std::string>& views, int step = 0) {
  Siamese::Given given;
  for (const std::string& v : views) given.images.push_back(hashed_view(device, cat("method test/{}/{}", step, v)));
  given.permutations = {{6, 1, 4, 3, 0, 7, 2, 5}, {3, 4, 5, 6, 7, 0, 1, 2}};
  given.box = {2, 3, 9, 12};
  given.lambda = 1 - 63.f / 256;
  given.weights = {0.5f, 0.5f};
  given.learning_rate = 0.03f;
  return given;
}

double relative_difference(const Tensor& a, const Tensor& b) {
  const std::vector<float> x = a.host<float>(), y = b.host<float>();
  REQUIRE(x.size() == y.size());
  double difference = 0, largest = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    difference = std::max(difference, std::abs(double{x[i]} - y[i]));
    largest = std::max(largest, std::abs(double{y[i]}));
  }
  return difference / largest;
}

/// Real batches over synthetic images; with a neighbour table where the method asks for one.
struct Feed {
  Feed(const Method& method, const Config& config)
      : dataset(open_dataset("synthetic:shapes?limit=40&size=20")), loader(*dataset, method.views(), options(config)) {
    auto t = std::make_shared<NeighborTable>();
    t->k = 2;
    for (int32_t i = 0; i < 40; ++i) t->index.insert(t->index.end(), {(i + 10) % 40, (i + 20) % 40});
    table = t;
  }
  static LoaderOptions options(const Config& config) {
    LoaderOptions o;
    o.seed = config.train.seed;
    o.workers = 0;
    o.batch_size = kBatch;
    return o;
  }
  /// Loads step `step` (five steps an epoch).
  void load(Method& method, int64_t step) {
    const int64_t epoch = step / 5;
    if (step % 5 == 0) loader.start_epoch(epoch, 0, table);
    REQUIRE(loader.next(batch));
    method.load(batch, {.step = step, .epoch = epoch, .progress = static_cast<double>(step) / 5});
  }
  std::unique_ptr<Dataset> dataset;
  Loader loader;
  std::shared_ptr<const NeighborTable> table;
  Batch batch;
};

struct Environment {
  Environment(const char* name, const char* value) : name_(name) { ::setenv(name, value, 1); }
  ~Environment() { ::unsetenv(name_); }
  const char* name_;
};

}  // namespace

TEST_CASE("three MoCo steps equal PyTorch, each from a shared state") { compare_steps("moco"); }
TEST_CASE("three CsMl steps equal PyTorch, each from a shared state") { compare_steps("csml"); }
TEST_CASE("ten MoCo steps in a row equal PyTorch") { compare_ten("moco"); }
TEST_CASE("ten CsMl steps in a row equal PyTorch") { compare_ten("csml"); }

TEST_CASE("CsMl with weights (1, 0), no box, p = q and kp = k is MoCo's loss and gradient") {
  const auto device = Device::open("cpu");
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
  const auto device = Device::open("cpu");
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
  const auto device = Device::open("cpu");
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

TEST_CASE("queues that the batch does not divide, and smaller than the batch") {
  const auto device = Device::open("cpu");
  auto with_queue = [&](int64_t rows) {
    Config c = golden_config("moco");
    c.method.queue = rows;
    return make(*device, c);
  };
  auto run = [&](Siamese& m, int step) {
    m.load_given(simple(*device, {"q", "k"}, step));
    m.step();
    CHECK(std::isfinite(m.measure(1)["loss"].get<double>()));
  };
  // The first step's keys do not depend on the queue: a long queue shows them.
  const auto reference = with_queue(64);
  run(*reference, 0);
  const std::vector<float> keys = reference->queue().rows().rows(0, kBatch).host<float>();
  for (const int64_t rows : {int64_t{1}, int64_t{5}, int64_t{8}, int64_t{11}, int64_t{20}}) {
    CAPTURE(rows);
    const auto method = with_queue(rows);
    std::vector<float> want = method->queue().rows().host<float>();
    run(*method, 0);
    for (size_t i = 0; i < kBatch; ++i)
      std::copy_n(keys.begin() + static_cast<std::ptrdiff_t>(16 * i), 16,
                  want.begin() + static_cast<std::ptrdiff_t>(i % static_cast<size_t>(rows) * 16));
    CHECK(method->queue().rows().host<float>() == want);
    for (int step = 1; step < 4; ++step) {
      const std::vector<float> before = method->queue().rows().host<float>();
      const int64_t from = method->queue().cursor().host<int64_t>()[0];
      CHECK(from == 8 * step % rows);
      run(*method, step);
      const std::vector<float> after = method->queue().rows().host<float>();
      for (int64_t r = 0; r < rows; ++r) {
        const bool replaced = (r - from + rows) % rows < kBatch;
        const bool changed = !std::equal(after.begin() + r * 16, after.begin() + r * 16 + 16, before.begin() + r * 16);
        CHECK(changed == replaced);
        double square = 0;
        for (int64_t d = 0; d < 16; ++d)
          square += double{after[static_cast<size_t>(r * 16 + d)]} * after[static_cast<size_t>(r * 16 + d)];
        CHECK(square == doctest::Approx(1).epsilon(1e-5));
      }
    }
  }
}

TEST_CASE("a step with a NaN or an infinity anywhere in its images changes nothing") {
  const auto device = Device::open("cpu");
  for (const char* name : {"moco", "csml"}) {
    const std::vector<std::string> views = view_names(name);
    const auto method = make(*device, golden_config(name));
    method->load_given(simple(*device, views));
    method->step();
    CHECK(method->measure(1)["finite"].get<bool>());
    const auto before = snapshot(*method);
    for (size_t v = 0; v < views.size(); ++v)
      for (const float bad : {NAN, INFINITY}) {
        CAPTURE(views[v]);
        Siamese::Given given = simple(*device, views, 1);
        std::vector<float> values = given.images[v].host<float>();
        values[5 * kSize * kSize * 3 + 77] = bad;  // one channel of one pixel of image 5
        given.images[v].upload(values);
        method->load_given(given);
        method->step();
        const nlohmann::json log = method->measure(1);
        CHECK_FALSE(log["finite"].get<bool>());
        CHECK(changes(before, snapshot(*method)) == "");
      }
    // The next clean step is the one that would have come without them.
    const auto clean = make(*device, golden_config(name));
    for (const int step : {0, 2}) {
      clean->load_given(simple(*device, views, step));
      clean->step();
    }
    method->load_given(simple(*device, views, 2));
    method->step();
    CHECK(method->measure(1)["finite"].get<bool>());
    CHECK(changes(snapshot(*method), snapshot(*clean)) == "");
    CHECK(changes(before, snapshot(*method)) != "");
  }
}

TEST_CASE("shuffling changes the company a key is normalised in, and nothing else") {
  const auto device = Device::open("cpu");
  auto keys = [&](int group_size, const std::vector<int32_t>& permutation) {
    Config c = golden_config("moco");
    c.method.bn_group_size = group_size;
    const auto method = make(*device, c);
    Siamese::Given given = simple(*device, {"q", "k"});
    given.permutations = {permutation};
    method->load_given(given);
    method->step();
    return method->queue().rows().rows(0, kBatch);
  };
  const std::vector<int32_t> across = {0, 4, 1, 5, 2, 6, 3, 7}, within = {3, 1, 0, 2, 6, 7, 5, 4};
  const Tensor plain = keys(4, identity());
  CHECK(relative_difference(keys(4, across), plain) > 1e-2);
  CHECK(relative_difference(keys(4, within), plain) < 1e-5);                // the same groups in another order
  CHECK(relative_difference(keys(0, across), keys(0, identity())) < 1e-5);  // one group

  // Through load(): the permutation differs from step to step, and can be switched off.
  auto loaded = [&](bool shuffle, int64_t step) {
    Config c = golden_config("moco");
    c.method.shuffle = shuffle;
    const auto method = make(*device, c);
    Feed feed(*method, c);
    feed.loader.start_epoch(0);
    REQUIRE(feed.loader.next(feed.batch));
    method->load(feed.batch, {.step = step, .epoch = 0, .progress = 0});
    method->step();
    return method->queue().rows().rows(0, kBatch);
  };
  const Tensor off = loaded(false, 0), first = loaded(true, 0), second = loaded(true, 1);
  CHECK(relative_difference(loaded(false, 1), off) == 0);
  CHECK(relative_difference(first, off) > 1e-3);
  CHECK(relative_difference(second, off) > 1e-3);
  CHECK(relative_difference(first, second) > 1e-3);
}

TEST_CASE("replayed steps are the eager ones, bit for bit") {
  for (const char* name : {"moco", "csml"}) {
    CAPTURE(std::string(name));
    const auto device = Device::open("cpu");
    const Config config = golden_config(name);
    const auto recorded = make(*device, config), eager = make(*device, config);
    Feed recorded_feed(*recorded, config), eager_feed(*eager, config);
    Step recorded_step(*device, [&] { recorded->step(); });
    const Environment environment("CSML_EAGER", "1");
    Step eager_step(*device, [&] { eager->step(); });
    for (int step = 0; step < 6; ++step) {
      recorded_feed.load(*recorded, step);
      eager_feed.load(*eager, step);
      recorded_step.run();
      eager_step.run();
      CHECK(recorded_step.recorded() == (step > 0));
      CHECK_FALSE(eager_step.recorded());
      CHECK(changes(snapshot(*recorded), snapshot(*eager)) == "");
      if (step % 2) {
        nlohmann::json a = recorded->measure(2), b = eager->measure(2);
        CHECK(a == b);
        CHECK(a["lr"].get<double>() > 0);
      }
    }
    // Evaluation between replays must not disturb them.
    for (const auto& method : {&recorded, &eager}) {
      const NoGrad no_grad;
      (*method)->query_encoder().embed(Var(hashed_view(*device, "evaluation")), Forward::inference());
    }
    recorded_feed.load(*recorded, 6);
    eager_feed.load(*eager, 6);
    recorded_step.run();
    eager_step.run();
    CHECK(changes(snapshot(*recorded), snapshot(*eager)) == "");
    // Forgotten and recorded again: still the same.
    recorded_step.reset();
    for (int step = 7; step < 10; ++step) {
      recorded_feed.load(*recorded, step);
      eager_feed.load(*eager, step);
      recorded_step.run();
      eager_step.run();
    }
    CHECK(recorded_step.recorded());
    CHECK(changes(snapshot(*recorded), snapshot(*eager)) == "");
  }
}

TEST_CASE("the first step's weights follow the warm-up and then the configuration") {
  const auto device = Device::open("cpu");
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
  const auto device = Device::open("cpu");
  Config config = golden_config("moco");
  config.method.name = "swav";
  CHECK_THROWS_WITH_AS(make_method(*device, config, 3),
                       "method 'swav' is unknown; use csml, moco, simclr, byol or mocov3", UsageError);
  config.method.name = "csml";
  CHECK(make_method(*device, config, 3)->needs_neighbors());
  config.method.name = "moco";
  CHECK_FALSE(make_method(*device, config, 3)->needs_neighbors());
}
