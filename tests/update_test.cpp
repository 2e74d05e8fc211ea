// Update: one step by hand, running statistics, and a gradient that is not finite. And a network of one's own under
// model.trunk.
#include "engine/update.h"

#include "csml/evaluation/features.h"
#include "csml/method/encoder.h"
#include "engine/step.h"
#include "tests/test.h"

// After the project's headers: doctest's CHECK replaces that of kernels/check.h from here on.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>

using namespace csml;

namespace {

/// Logits bn(x w^T) of three classes, [4,3] of x [4,2].
struct Net {
  Params params;
  Linear linear;
  BatchNorm norm;
  explicit Net(Device& device) : params(device), linear(params, "fc", 2, 3, false), norm(params, "bn", 3) {
    params.build(1, true);
  }
  Var operator()(const Tensor& x, const Forward& forward) const {
    const Var y = linear(Var(x));
    return reshape(norm(reshape(y, {4, 1, 1, 3}), forward, false), {4, 3});
  }
};

struct Fixture {
  std::unique_ptr<Device> device = Device::open("cpu");
  Net net{*device};
  Tensor x = Tensor::from(*device, {4, 2}, std::vector<float>{1, 2, -1, 0.5f, 3, -2, 0, 1});
  Tensor labels = Tensor::from(*device, {4}, std::vector<int32_t>{0, 1, 2, 0});
};

std::vector<float> host(const Tensor& t) { return t.host<float>(); }

}  // namespace

TEST_CASE("an update is the optimizer's step on the loss's gradient, and moves the running statistics") {
  Fixture f;
  Update update(f.net.params, {.kind = "sgd", .momentum = 0, .weight_decay = 0}, 0.75f);
  update.set_learning_rate(0.5);
  const std::vector<float> before = host(f.net.params.master()), running = host(f.net.params.buffers());
  const Forward forward = update.forward();
  update(cross_entropy(f.net(f.x, forward), f.labels));
  const std::vector<float> after = host(f.net.params.master()), gradient = host(f.net.params.grad());
  const std::vector<float> statistics = host(forward.statistics), now = host(f.net.params.buffers());
  double moved = 0;
  for (size_t i = 0; i < before.size(); ++i) {
    CHECK(after[i] == doctest::Approx(before[i] - 0.5f * gradient[i]));
    moved += std::abs(gradient[i]);
  }
  CHECK(moved > 0.01);
  // Mean of x w^T over the rows, per column: what the statistics begin with.
  for (size_t c = 0; c < 3; ++c)
    CHECK(statistics[c] == doctest::Approx(0.75f * before[2 * c] + 0.375f * before[2 * c + 1]));
  for (size_t i = 0; i < now.size(); ++i) CHECK(now[i] == doctest::Approx(0.75f * running[i] + 0.25f * statistics[i]));
  CHECK(update.finite().host<int32_t>()[0] == 1);
}

TEST_CASE("a step whose gradient is not finite changes nothing") {
  Fixture f;
  Update update(f.net.params, {.kind = "sgd", .momentum = 0.9f, .weight_decay = 0.1f});
  update.set_learning_rate(0.5);
  const std::vector<float> before = host(f.net.params.master()), running = host(f.net.params.buffers());
  const Tensor x = Tensor::full(*f.device, {4, 2}, std::numeric_limits<float>::infinity());
  update(cross_entropy(f.net(x, update.forward()), f.labels));
  CHECK(update.finite().host<int32_t>()[0] == 0);
  CHECK(host(f.net.params.master()) == before);
  CHECK(host(f.net.params.buffers()) == running);
}

TEST_CASE("recorded updates are the eager ones") {
  std::vector<std::vector<float>> ends;
  for (const bool record : {false, true}) {
    Fixture f;
    Update update(f.net.params, {.kind = "sgd", .momentum = 0.9f, .weight_decay = 0.01f});
    const auto work = [&] { update(cross_entropy(f.net(f.x, update.forward()), f.labels)); };
    Step step(*f.device, work);
    for (int i = 0; i < 6; ++i) {
      update.set_learning_rate(0.1 * i);
      if (record) {
        step.run();
      } else {
        work();
      }
    }
    CHECK(step.recorded() == record);
    ends.push_back(host(f.net.params.master()));
  }
  CHECK(ends[0] == ends[1]);
}

TEST_CASE("a network without running statistics is updated too") {
  const auto device = Device::open("cpu");
  Params params(*device);
  const Linear linear(params, "fc", 2, 3);
  params.build(1, true);
  Update update(params, {.kind = "sgd", .momentum = 0, .weight_decay = 0});
  update.set_learning_rate(1);
  const std::vector<float> before = host(params.master());
  const Tensor x = Tensor::from(*device, {1, 2}, std::vector<float>{1, 2});
  update(cross_entropy(linear(Var(x)), Tensor::from(*device, {1}, std::vector<int32_t>{0})));
  CHECK(host(params.master()) != before);
}

namespace {

/// One convolution and a global average.
class TinyTrunk : public Trunk {
 public:
  TinyTrunk(Params& params, int channels) : conv_(params, "conv", channels, 8, 3, 2, 1), norm_(params, "bn", 8) {}
  Stages operator()(const Var& x, const Forward& forward, std::vector<Var>*) const override {
    Stages out;
    out.pooled = global_avg_pool(norm_(conv_(x), forward, true));
    return out;
  }
  int64_t feature_dim() const override { return 8; }

 private:
  Conv2d conv_;
  BatchNorm norm_;
};

}  // namespace

TEST_CASE("model.trunk names a registered network") {
  const auto device = Device::open("cpu");
  ModelConfig model{.trunk = "tiny", .head_hidden = 6, .dim = 4};
  CHECK_THROWS_WITH_AS(Encoder(*device, model, 3, 0, true),
                       "model.trunk = 'tiny' is a network that this program does not have; known are: resnet",
                       UsageError);
  register_trunk("tiny", [](Params& params, int channels) { return std::make_unique<TinyTrunk>(params, channels); });
  const Encoder encoder(*device, model, 3, 0, true);
  CHECK(encoder.feature_dim() == 8);
  CHECK(encoder.params().entries()[0].name == "conv.weight");
  const Var images(Tensor::full(*device, {2, 16, 16, 3}, 1));
  CHECK(encoder.embed(images, Forward::inference()).shape() == Shape{2, 4});
  CHECK_THROWS_WITH_AS(Encoder(*device, model, 3, 0, true, {.stages = {2}}),
                       "method.levels names res4, but the network 'tiny' has no such stage", UsageError);
  model.trunk = "huge";
  CHECK_THROWS_WITH_AS(Encoder(*device, model, 3, 0, true),
                       "model.trunk = 'huge' is a network that this program does not have; known are: resnet, tiny",
                       UsageError);
  CHECK_THROWS_AS(register_trunk("resnet", {}), UsageError);
}

TEST_CASE("features of a network of one's own are its rows, image by image") {
  const auto device = Device::open("cpu");
  const auto data = open_dataset("synthetic:shapes?limit=10&size=16");
  FeatureOptions options;
  options.transform = {.resize = 0, .size = 16};
  options.l2_normalise = false;
  options.batch_size = 4;
  options.workers = 0;
  std::vector<int64_t> batches;
  const auto mean = [&](const Tensor& images) {
    batches.push_back(images.shape()[0]);
    return global_avg_pool(Var(images)).value();
  };
  const Features features = extract_features(*device, 3, mean, *data, options);
  CHECK(batches == std::vector<int64_t>{4, 4, 2});
  CHECK(features.values.shape() == Shape{10, 3});
  CHECK(features.labels[7] == data->label(7));
  const Image image = data->load(9);
  double sum = 0;
  for (size_t i = 0; i < image.size(); i += 3) sum += image.data()[i];
  const double expected = (sum / 256 / 255 - options.normalise.mean[0]) / options.normalise.std[0];
  CHECK(host(features.values)[27] == doctest::Approx(expected).epsilon(1e-5));
}
