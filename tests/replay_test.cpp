// Record and replay: the same bits as eager execution, on memory that nothing else gets.
#include "engine/ops.h"
#include "engine/step.h"
#include "kernels/cpu/backend.h"
#include "tests/backend.h"
#include "tests/test.h"

// After the project's headers: doctest's CHECK replaces that of kernels/check.h from here on.
#include <doctest/doctest.h>

using namespace csml;
using namespace csml::test;

namespace {

std::vector<float> normals(const std::string& name, int64_t count, double scale = 1) {
  Array a({count});
  Random random = random_of(name);
  fill_normal(a, random, false, scale);
  return {a.v.begin(), a.v.end()};
}

/// A small network with its optimizer: two convolutions with a residual, max pool, linear, cross entropy, SGD, running
/// statistics. Everything that changes between steps is a tensor.
class Model {
 public:
  explicit Model(Device& device) : device_(device) {
    images = Tensor(device, {kBatch, 9, 9, 3}, DType::u8);
    color = Tensor(device, {kBatch, ColorParams::kColumns});
    labels = Tensor(device, {kBatch}, DType::i32);
    learning_rate = Tensor(device, {1});
    loss = Tensor::full(device, {1}, 0);
    running_mean = Tensor::full(device, {8}, 0);
    running_momentum = Tensor::full(device, {1}, 0.9f);
    finite = Tensor(device, {1}, DType::i32);
    add("conv1", {8, 3, 3, 3}, 0.3);
    add("gamma1", {8}, 1);
    add("beta1", {8}, 0.1);
    add("conv2", {8, 3, 3, 8}, 0.2);
    add("gamma2", {8}, 1);
    add("beta2", {8}, 0.1);
    add("weight", {5, 8}, 0.3);
    add("bias", {5}, 0.1);
  }

  void step() const {
    for (const Var& p : parameters) p.mark_unwritten();
    Tensor x(device_, {kBatch, 9, 9, 3}), batch_mean(device_, {8});
    augment(images, color, x, {0.5f, 0.5f, 0.5f, 0}, {0.25f, 0.25f, 0.25f, 1});
    const auto& p = parameters;
    Var h = batch_norm(conv2d(Var(x), p[0], 1, 1), p[1], p[2], {},
                       {.groups = 2, .relu = true, .batch_mean = batch_mean, .batch_var = Tensor(device_, {8})});
    h = max_pool(h, 3, 2, 1);
    h = batch_norm(conv2d(h, p[3], 1, 1), p[4], p[5], h,
                   {.groups = 2, .relu = true, .batch_mean = {}, .batch_var = {}});
    const Var result = cross_entropy(linear(global_avg_pool(h), p[6], p[7]), labels);
    copy(result.value(), loss);
    result.backward();
    all_finite(result.value(), finite);
    for (size_t i = 0; i < p.size(); ++i)
      device_.backend().sgd({.grad = p[i].grad(),
                             .param = p[i].value(),
                             .buffer = momentum[i],
                             .learning_rate = learning_rate,
                             .finite = finite,
                             .momentum = 0.9f,
                             .weight_decay = 1e-4f});
    ema(batch_mean, running_mean, running_momentum, finite);
  }

  /// New inputs, a function of the step's number alone.
  void feed(int64_t number) const {
    Random random(7, Purpose::test, static_cast<uint64_t>(number));
    std::vector<uint8_t> pixels(static_cast<size_t>(images.size()));
    for (uint8_t& pixel : pixels) pixel = static_cast<uint8_t>(random.below(256));
    images.upload(pixels);
    std::vector<float> rows;
    for (int64_t n = 0; n < kBatch; ++n) {
      ColorParams c;
      c.brightness = random.uniform(0.6f, 1.4f);
      c.order = static_cast<float>(random.below(24));
      c.flip = random.uniform() < 0.5f;
      const float* row = &c.brightness;
      rows.insert(rows.end(), row, row + ColorParams::kColumns);
    }
    color.upload(rows);
    std::vector<int32_t> classes(kBatch);
    for (int32_t& label : classes) label = static_cast<int32_t>(random.below(5));
    labels.upload(classes);
    learning_rate.upload(std::vector<float>{0.05f / static_cast<float>(number + 1)});
  }

  /// Every byte of state, in order.
  std::vector<float> state() const {
    std::vector<float> all = loss.host<float>();
    const auto append = [&](const Tensor& t) {
      const std::vector<float> values = t.host<float>();
      all.insert(all.end(), values.begin(), values.end());
    };
    append(running_mean);
    for (const Tensor& t : momentum) append(t);
    for (const Var& p : parameters) {
      append(p.value());
      append(p.grad());
    }
    return all;
  }

  static constexpr int64_t kBatch = 4;
  Tensor images, color, labels, learning_rate, loss, running_mean, running_momentum, finite;
  std::vector<Var> parameters;
  std::vector<Tensor> momentum;

 private:
  void add(const std::string& name, Shape shape, double scale) {
    parameters.push_back(
        Var::leaf(Tensor::from(device_, shape, normals(name, shape.size(), scale)), Tensor::full(device_, shape, NAN)));
    momentum.push_back(Tensor::full(device_, shape, 0));
  }

  Device& device_;
};

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

/// States after each of `count` eager steps.
std::vector<std::vector<float>> eager_states(int64_t count) {
  const auto device = open_backend();
  const Model model(*device);
  std::vector<std::vector<float>> states;
  for (int64_t i = 0; i < count; ++i) {
    model.feed(i);
    model.step();
    states.push_back(model.state());
  }
  return states;
}

/// A CPU device that shows which calls and allocations a recording makes.
struct LoggedDevice {
  LoggedDevice() : LoggedDevice(std::make_unique<CpuBackend>()) {}
  explicit LoggedDevice(std::unique_ptr<CpuBackend> made) : backend(*made), device(std::move(made)) {}
  std::shared_ptr<RecordedStep> record(CallLog& log, const std::function<void()>& work) {
    backend.log_calls(&log);
    auto recorded = device.record(work);
    backend.log_calls(nullptr);
    return recorded;
  }
  /// What differs between two recordings of `work`; the first lives on while the second is made.
  std::string difference_of_two(
      const std::function<void()>& work, const std::function<void()>& between = [] {}) {
    CallLog first, second;
    const auto a = record(first, work);
    between();
    const auto b = record(second, work);
    CHECK(!first.calls().empty());
    return difference(first, second);
  }
  CpuBackend& backend;
  Device device;
};

}  // namespace

TEST_CASE("a replayed training step equals the eager one bit for bit") {
  const auto want = eager_states(8);
  for (size_t i = 0; i < want.size(); ++i) {
    for (float x : want[i]) REQUIRE(std::isfinite(x));
    if (i) REQUIRE_FALSE(same_bits(want[i], want[i - 1]));  // else the comparison below means nothing
  }

  const auto device = open_backend();
  const Model model(*device);
  std::shared_ptr<RecordedStep> recorded;
  for (int64_t i = 0; i < 8; ++i) {
    model.feed(i);
    if (i < 2)
      model.step();
    else if (i == 2)
      recorded = device->record([&] { model.step(); });  // recording runs it once
    else
      recorded->run();
    CAPTURE(i);
    CHECK(same_bits(model.state(), want[static_cast<size_t>(i)]));
  }
}

TEST_CASE("Step runs eagerly, records and replays to the same bits") {
  const auto want = eager_states(6);
  const auto device = open_backend();
  const Model model(*device);
  Step step(*device, [&] { model.step(); });
  for (int64_t i = 0; i < 6; ++i) {
    model.feed(i);
    if (i == 5) step.reset();
    step.run();
    CAPTURE(i);
    CHECK(same_bits(model.state(), want[static_cast<size_t>(i)]));
    if (i <= 1) CHECK_FALSE(step.recorded());
    if (i == 4 && !std::getenv("CSML_EAGER")) CHECK(step.recorded());
  }
}

TEST_CASE("nothing allocated after a recording shares its memory") {
  const auto want = eager_states(6);
  const auto device = open_backend();
  const Model model(*device);
  model.feed(0);
  model.step();
  model.feed(1);
  std::vector<std::pair<const char*, const char*>> recorded_ranges;
  const auto note = [&](const Tensor& t) {
    const char* begin = static_cast<const char*>(ConstView(t).data);
    recorded_ranges.emplace_back(begin, begin + t.bytes());
  };
  const auto recorded = device->record([&] {
    model.step();
    // Blocks of the sizes the step has just given back: they come from the recording's pool.
    for (const Shape& s : {Shape{4, 9, 9, 8}, Shape{4, 5, 5, 8}, Shape{4, 9, 9, 3}, Shape{8}}) note(Tensor(*device, s));
  });
  CHECK(recorded->reserved() > 0);

  // Take every block there is, of many sizes, and spoil it.
  std::vector<Tensor> others;
  for (int64_t size = 1; size < 20000; size = size * 5 / 4 + 1)
    for (int i = 0; i < 4; ++i) others.push_back(Tensor::full(*device, {size}, 12345));
  for (const Tensor& t : others) {
    const char* begin = static_cast<const char*>(ConstView(t).data);
    for (const auto& [first, last] : recorded_ranges) CHECK_FALSE((begin < last && first < begin + t.bytes()));
  }
  CHECK(same_bits(model.state(), want[1]));
  for (int64_t i = 2; i < 6; ++i) {
    model.feed(i);
    recorded->run();
    CAPTURE(i);
    CHECK(same_bits(model.state(), want[static_cast<size_t>(i)]));
  }
  for (const Tensor& t : others)
    for (float x : t.host<float>()) REQUIRE(x == 12345);
}

TEST_CASE("a tensor made in a recording is updated by every replay") {
  const auto device = open_backend();
  const Tensor x = Tensor::full(*device, {3}, 1);
  Tensor y;
  const auto recorded = device->record([&] { y = scale(Var(x), 2).value(); });
  CHECK(y.host<float>() == std::vector<float>{2, 2, 2});
  x.upload(std::vector<float>{4, 5, 6});
  recorded->run();
  CHECK(y.host<float>() == std::vector<float>{8, 10, 12});
}

TEST_CASE("the arena stops growing after the first step") {
  const auto device = open_backend();
  const Model model(*device);
  model.feed(0);
  model.step();
  const ArenaStats warm = device->stats();
  CHECK(warm.peak >= warm.in_use);
  CHECK(warm.reserved >= warm.peak);
  for (int64_t i = 1; i < 5; ++i) {
    model.feed(i);
    model.step();
  }
  CHECK(device->stats().growths == warm.growths);
  CHECK(device->stats().reserved == warm.reserved);
  CHECK(device->stats().in_use == warm.in_use);

  std::shared_ptr<RecordedStep> recorded = device->record([&] { model.step(); });
  const ArenaStats after = device->stats();
  CHECK(after.reserved == warm.reserved + recorded->reserved());
  for (int64_t i = 5; i < 9; ++i) {
    model.feed(i);
    recorded->run();
  }
  CHECK(device->stats().growths == after.growths);

  // The main pool is as before, and a dropped recording gives its memory back.
  model.feed(9);
  model.step();
  CHECK(device->stats().growths == after.growths);
  recorded.reset();
  CHECK(device->stats().reserved == warm.reserved);
}

TEST_CASE("a step is recorded into the memory of its eager runs") {
  const auto device = open_backend();
  const Model model(*device);
  Step step(*device, [&] { model.step(); });
  ArenaStats second{};
  for (int64_t i = 0; i < 6; ++i) {
    model.feed(i);
    step.run();
    if (i == 1) second = device->stats();
    if (i < 2) continue;
    CAPTURE(i);
    CHECK(device->stats().growths == second.growths);
    CHECK(device->stats().reserved == second.reserved);
    CHECK(step.recorded() == !std::getenv("CSML_EAGER"));
  }
  // What the main pool gives from now on is its own: an eager run must ask for more, and the replay stays right.
  const auto want = eager_states(8);
  model.feed(6);
  step.run();
  CHECK(same_bits(model.state(), want[6]));
  const Model other(*device);
  const size_t before = device->stats().reserved;
  other.feed(0);
  other.step();
  if (step.recorded()) CHECK(device->stats().reserved > before);
  model.feed(7);
  step.run();
  CHECK(same_bits(model.state(), want[7]));
  CHECK(same_bits(other.state(), want[0]));
}

TEST_CASE("two recordings do not disturb each other") {
  const auto device = open_backend();
  const Tensor x = Tensor::full(*device, {1000}, 1), a = Tensor::full(*device, {1000}, 0),
               b = Tensor::full(*device, {1000}, 0);
  const auto times = [&](float factor, const Tensor& out) {
    return device->record([&, factor] { copy(scale(scale(Var(x), factor), 10).value(), out); });
  };
  const auto first = times(2, a), second = times(3, b);
  x.upload(std::vector<float>(1000, 5));
  first->run();
  second->run();
  CHECK(a.host<float>() == std::vector<float>(1000, 100));
  CHECK(b.host<float>() == std::vector<float>(1000, 150));
}

TEST_CASE("a recording that fails leaves the device usable") {
  const auto device = open_backend();
  CHECK_THROWS_AS(device->record([&] { throw Error("half way"); }), Error);
  CHECK_THROWS_AS(device->record([&] { device->record([] {}); }), Error);
  const Tensor x = Tensor::full(*device, {2}, 3);
  const auto recorded = device->record([&] { fill(x, 4); });
  fill(x, 0);
  recorded->run();
  CHECK(x.host<float>() == std::vector<float>{4, 4});
}

TEST_CASE("two recordings of an honest step make the same calls, with the same pointers and values") {
  LoggedDevice logged;
  const Model model(logged.device);
  model.feed(0);
  model.step();
  CHECK(logged.difference_of_two([&] { model.step(); }, [&] { model.feed(1); }) == "");
  CallLog log;
  logged.record(log, [&] { model.step(); });
  CHECK(log.calls().size() > 30);
  CHECK(log.calls().front().name() == "Augment");
  CHECK(log.calls().back().name() == "Ema");
  CHECK(log.blocks().size() > 5);
}

TEST_CASE("a step that bakes something that changes into a call is found out, by call") {
  LoggedDevice logged;
  Device& device = logged.device;
  const Tensor x = Tensor::full(device, {4}, 0), y = Tensor::full(device, {4}, 0);
  int runs = 0;
  const auto found = [&](const std::function<void()>& work) {
    runs = 0;
    return logged.difference_of_two([&] {
      fill(y, 1);
      work();
      ++runs;
    });
  };
  CHECK(found([&] { fill(x, 2); }) == "");
  CHECK(found([&] { fill(Tensor(device, {2000}), 2); }) == "");  // another address in each, but asked for alike
  const std::string value = found([&] { fill(x, static_cast<float>(runs)); });
  CHECK(value == "call 1, Fill: number 4 of its arguments differs");
  CHECK(found([&] { copy(runs ? x : y, runs ? y : x); }).starts_with("call 1, Copy: "));
  CHECK(found([&] { fill(x.rows(runs, 2), 2); }).starts_with("call 1, Fill: "));  // a pointer alone
  CHECK(found([&] { fill(x.rows(0, 2 + runs), 2); }).starts_with("call 1, Fill: "));
  CHECK(found([&] {
          const Tensor a(device, {2000}), b(device, {2000});
          fill(runs ? a : b, 2);
        }).starts_with("call 1, Fill: "));
  CHECK(found([&] { runs ? copy(x, y) : fill(x, 2); }) == "call 1 is Fill in one and Copy in the other");
  CHECK(found([&] {
          if (runs) fill(x, 2);
        }) == "1 calls and 2");
  CHECK(found([&] { Tensor(device, {1000 * (1 + runs)}); }) == "the blocks of memory differ");
}
