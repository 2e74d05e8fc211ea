// A step of MoCo and CsMl as a change of state: queues of odd sizes, steps that change nothing, shuffled batch-norm
// groups, recorded steps.
#include <cstdlib>

#include "csml/method/resolve.h"
#include "engine/step.h"
#include "kernels/cpu/backend.h"

#include "tests/method_fixture.h"

using namespace csml;
using namespace csml::test;

namespace {

struct Environment {
  Environment(const char* name, const char* value) : name_(name) { ::setenv(name, value, 1); }
  ~Environment() { ::unsetenv(name_); }
  const char* name_;
};

}  // namespace

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
        // Nor does a clean step behind it, until the host has seen that one.
        method->load_given(simple(*device, views, 2));
        method->step();
        CHECK_FALSE(method->measure(1)["finite"].get<bool>());
        CHECK(changes(before, snapshot(*method)) == "");
        method->go_on();
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
      CHECK(recorded_step.recorded() == (step > 1));
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

TEST_CASE("a step recorded twice makes the same calls, with the same pointers and values") {
  for (const char* name : {"moco", "csml"}) {
    CAPTURE(std::string(name));
    auto backend = std::make_unique<CpuBackend>();
    CpuBackend& calls = *backend;
    Device device(std::move(backend));
    Config config = golden_config(name);
    config.schedule.warmup_epochs = 1;  // everything that a schedule moves differs between the two steps
    config.method.warmup_epochs = 1;
    resolve(config);
    const auto method = make(device, config);
    Feed feed(*method, config);
    auto record = [&](CallLog& log) {
      device.trim();
      calls.log_calls(&log);
      auto recorded = device.record([&] { method->step(); });
      calls.log_calls(nullptr);
      return recorded;
    };
    auto values = [&] { return method->measure(1); };
    feed.load(*method, 0);
    method->step();
    feed.load(*method, 1);
    CallLog first, second;
    const auto recorded = record(first);
    const nlohmann::json then = values();
    for (int step = 2; step < 8; ++step) {
      feed.load(*method, step);
      recorded->run();
    }
    {
      const NoGrad no_grad;
      method->query_encoder().embed(Var(hashed_view(device, "evaluation")), Forward::inference());
    }
    feed.load(*method, 8);
    const auto again = record(second);
    const nlohmann::json now = values();
    CHECK(now["lr"] != then["lr"]);
    if (config.method.name == "csml") CHECK(now["weights"] != then["weights"]);
    CHECK(first.calls().size() > 150);
    CHECK(difference(first, second) == "");
  }
}
