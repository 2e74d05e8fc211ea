// Training in 16 bits: master and rounded parameters, recorded against eager steps, the scaling of the loss, resuming.
// Runs on the CUDA kernels: on the host, or on a card with CSML_TEST_BACKEND=cuda:N.
#include "csml/method/resolve.h"
#include "csml/training/train_loop.h"
#include "engine/checkpoint.h"
#include "engine/log.h"
#include "engine/step.h"
#include "kernels/half.h"
#include "tests/simt/simt_backend.h"

#include "tests/backend.h"
#include "tests/method_fixture.h"

#include <set>

using namespace csml;
using namespace csml::test;

namespace {

double scale_of(const Siamese& method) { return state_of(method, "loss_scale").host<float>()[0]; }
int64_t skipped_by(const Siamese& method) { return state_of(method, "loss_scale.counters").host<int64_t>()[1]; }

/// A loss scale at which the first steps of the tiny network overflow, and then no more.
constexpr float kOverflows = 262144;

/// What training changes, without the loss scale.
std::map<std::string, std::vector<std::byte>> trained(Method& method) {
  auto all = snapshot(method);
  std::erase_if(all, [](const auto& item) { return item.first.starts_with("loss_scale"); });
  return all;
}

/// Notes what InfoNCE and the neighbour search multiply.
class Watching final : public SimtBackend {
 public:
  void info_nce(const InfoNce& args) override {
    for (const ConstView& v : {args.query, args.queue, args.positives[0]}) types.insert(v.dtype);
    SimtBackend::info_nce(args);
  }
  void top_k(const TopK& args) override {
    for (const ConstView& v : {args.queries, args.bank}) searched.insert(v.dtype);
    SimtBackend::top_k(args);
  }
  std::set<DType> types, searched;
};

}  // namespace

TEST_CASE("the loss multiplies embeddings and queue in 16 bits; queue and gradient stay f32") {
  for (const auto& [precision, type] :
       {std::pair{"fp32", DType::f32}, std::pair{"bf16", DType::bf16}, std::pair{"fp16", DType::f16}}) {
    auto backend = std::make_unique<Watching>();
    const Watching& watching = *backend;
    Device device(std::move(backend));
    const auto method = make(device, config_in("csml", precision));
    one_step(*method, simple(device, view_names("csml")));
    CHECK(watching.types == std::set<DType>{type});
    CHECK(method->queue().rows().dtype() == DType::f32);
  }
}

TEST_CASE("InfoNCE against a queue in 16 bits is that of the rounded rows") {
  const auto device = open_cuda_kernels();
  const auto rows = [&](int64_t n, float shift) {
    std::vector<float> values(static_cast<size_t>(n * 24));
    for (size_t i = 0; i < values.size(); ++i) values[i] = std::sin(0.37f * static_cast<float>(i * i % 1009) + shift);
    return l2_normalize(Var(Tensor::from(*device, {n, 24}, values))).value();
  };
  const Tensor weights = Tensor::from(*device, {2}, std::vector<float>{0.7f, 0.3f});
  for (const auto& [type, rounding] : {std::pair{DType::bf16, 1.f / 256}, std::pair{DType::f16, 1.f / 2048}}) {
    const auto rounded = [&](const Tensor& x) { return cast(cast(Var(x), type), DType::f32).value(); };
    const auto evaluate = [&](const Tensor& query, const std::vector<Tensor>& positives, const Tensor& queue) {
      const Var anchor = Var::leaf(query, Tensor::full(*device, query.shape(), 0.f));
      const Var loss = info_nce(anchor, positives, weights, queue, 0.2f);
      loss.backward(Tensor::from(*device, {1}, std::vector<float>{1048576}));  // beyond f16 once scaled
      return std::pair{loss.value().host<float>()[0], anchor.grad()};
    };
    const Tensor query = rows(9, 0), queue = rows(50, 1);
    const std::vector<Tensor> positives{rows(9, 2), rows(9, 3)};
    const auto [loss, gradient] = evaluate(query, positives, cast(Var(queue), type).value());
    const auto [want, exact] = evaluate(rounded(query), {rounded(positives[0]), rounded(positives[1])}, rounded(queue));
    CHECK(loss == doctest::Approx(want).epsilon(1e-5));
    CHECK(gradient.dtype() == DType::f32);
    CHECK(relative_difference(gradient, exact) < rounding);
    CHECK(relative_difference(gradient, exact) > 1e-6);
  }
}

TEST_CASE("networks compute with the rounded master parameters, which gradients of their own type never touch") {
  const auto device = open_cuda_kernels();
  const auto method = make(*device, config_in("moco", "bf16"));
  method->load_given(simple(*device, {"q", "k"}));
  method->step();
  for (Encoder* encoder : {&method->query_encoder(), &method->key_encoder()}) {
    const Params& p = encoder->params();
    CHECK(p.compute().dtype() == DType::bf16);
    CHECK(p.master().dtype() == DType::f32);
    const std::vector<float> master = p.master().host<float>();
    const std::vector<bf16> copy = p.compute().host<bf16>();
    int64_t differ = 0, rounded = 0;
    for (size_t i = 0; i < master.size(); ++i) {
      differ += copy[i].bits != bf16(master[i]).bits;
      rounded += float(copy[i]) != master[i];
    }
    CHECK(differ == 0);
    CHECK(rounded > p.count() / 2);
  }
}

TEST_CASE("16 bits: recorded steps are the eager ones, bit for bit") {
  for (const char* precision : {"bf16", "fp16"}) {
    CAPTURE(std::string(precision));
    const auto device = open_cuda_kernels();
    const Config config = config_in("moco", precision, kOverflows);
    const auto recorded = make(*device, config), eager = make(*device, config);
    Step step(*device, [&] { recorded->step(); });
    std::vector<Tensor> held;  // a recording reads the memory it was made with: the images move into it
    for (int i = 0; i < 5; ++i) {
      Siamese::Given given = simple(*device, {"q", "k"}, i);
      eager->load_given(given);
      if (held.empty()) held = given.images;
      for (size_t v = 0; v < held.size(); ++v) copy(given.images[v], held[v]);
      given.images = held;
      recorded->load_given(given);
      step.run();
      eager->step();
      CHECK(step.recorded() == (i > 1));
      CHECK(changes(snapshot(*recorded), snapshot(*eager)) == "");
    }
    if (std::string(precision) == "bf16") continue;
    CHECK(skipped_by(*recorded) >= 1);  // replays skip and commit
    CHECK(skipped_by(*recorded) <= 3);
  }
}

TEST_CASE("a step that overflows changes nothing but the loss scale, and the next ones go on") {
  const auto device = open_cuda_kernels();
  Config config = config_in("moco", "fp16", 16777216);  // 2^24 times this network's gradients is beyond 65504
  config.train.loss_scale.interval = 2;
  const auto method = make(*device, config);
  int64_t skipped = 0;
  double scale = 16777216;
  for (int i = 0; i < 12 && skipped == i; ++i) {
    const auto before = trained(*method);
    const nlohmann::json log = one_step(*method, simple(*device, {"q", "k"}));
    skipped = skipped_by(*method);
    CHECK(log["skipped_steps"] == skipped);
    CHECK(log["loss_scale"] == scale_of(*method));
    CHECK(log["finite"].get<bool>());  // a search, not an alarm
    CHECK(std::isfinite(log["loss"].get<double>()));
    if (skipped == i + 1) {
      scale /= 2;
      CHECK(changes(before, trained(*method)) == "");
    } else {
      CHECK(changes(before, trained(*method)) != "");
    }
    CHECK(scale_of(*method) == scale);
  }
  CHECK(skipped >= 1);
  CHECK(skipped < 12);
  // From well below: the second finite step in a row doubles the scale, and so does the fourth.
  config.train.loss_scale.initial = 64;
  const auto low = make(*device, config);
  for (const double after : {64, 128, 128, 256}) {
    one_step(*low, simple(*device, {"q", "k"}));
    CHECK(scale_of(*low) == after);
  }
  CHECK(skipped_by(*low) == 0);
}

TEST_CASE("at its floor the loss scale stays, and the step counts as not finite") {
  const auto device = open_cuda_kernels();
  Config config = config_in("moco", "fp16", 16777216);
  config.train.loss_scale.smallest = 8388608;
  const auto method = make(*device, config);
  CHECK(one_step(*method, simple(*device, {"q", "k"}))["finite"].get<bool>());
  CHECK_FALSE(one_step(*method, simple(*device, {"q", "k"}))["finite"].get<bool>());
  CHECK(scale_of(*method) == 8388608);
  CHECK(skipped_by(*method) == 1);  // the one that halved it
  const auto before = trained(*method);
  method->go_on();
  CHECK_FALSE(one_step(*method, simple(*device, {"q", "k"}))["finite"].get<bool>());
  CHECK(changes(before, trained(*method)) == "");
}

TEST_CASE("scaled gradients are the unscaled ones, and an optimizer sees no scale") {
  const auto device = open_cuda_kernels();
  // The first buffer of each would show a scale that is not taken out.
  for (const char* optimizer : {"sgd", "lars", "adamw"}) {
    CAPTURE(std::string(optimizer));
    const auto after_step = [&](float scale) {
      Config config = config_in("moco", "fp16", scale);
      config.optimizer.kind = optimizer;
      auto method = make(*device, config);
      CHECK(one_step(*method, simple(*device, {"q", "k"}))["skipped_steps"] == 0);
      return method;
    };
    const auto small = after_step(64), large = after_step(1024);
    const Params &a = small->query_encoder().params(), &b = large->query_encoder().params();
    std::vector<float> scaled = a.grad().host<float>();
    for (float& g : scaled) g *= 16;
    // Equal but for gradients that fall below f16's normal numbers at the smaller scale.
    CHECK(relative_difference(Tensor::from(*device, a.grad().shape(), scaled), b.grad()) < 1e-2);
    const std::string first =
        std::string("optimizer.") + (std::string(optimizer) == "adamw" ? "first_moment" : "momentum");
    CHECK(relative_difference(state_of(*small, first), state_of(*large, first)) < 1e-2);
  }
}

TEST_CASE("a run in 16 bits that is stopped and resumed is the run that was not, the loss scale included") {
  log_configure(0, 1, true);
  const auto run = [](const std::filesystem::path& out, const std::string& precision, int steps) {
    std::filesystem::create_directories(out);
    const auto device = open_cuda_kernels();
    Config config = config_in("moco", precision, kOverflows);
    config.data.train = "synthetic:shapes?limit=40&size=20";
    config.data.workers = 0;
    config.train.epochs = 1;
    config.train.max_steps = steps;
    config.train.log_every_steps = 1;
    config.train.loss_scale.interval = 2;
    config.eval.knn_every_epochs = 0;
    resolve(config);
    const auto comm = Comm::local();
    RunOptions options;
    options.out = out;
    return pretrain(*device, *comm, config, options);
  };
  const auto bytes_of = [](const std::filesystem::path& out, const char* file) {
    return slurp(newest_checkpoint(out, [](const std::string&) {})->folder / file);
  };
  for (const char* precision : {"bf16", "fp16"}) {
    CAPTURE(std::string(precision));
    const Folder folder;
    run(folder.path / "whole", precision, 5);
    run(folder.path / "parts", precision, 2);
    run(folder.path / "parts", precision, 5);
    for (const char* file : {"model.safetensors", "state.safetensors"})
      CHECK(bytes_of(folder.path / "whole", file) == bytes_of(folder.path / "parts", file));
  }
}

TEST_CASE("a run in 16 bits searches its neighbours among features in f16") {
  log_configure(0, 1, true);
  for (const auto& [precision, type] :
       {std::pair{"fp32", DType::f32}, std::pair{"bf16", DType::f16}, std::pair{"fp16", DType::f16}}) {
    const Folder folder;
    auto backend = std::make_unique<Watching>();
    const Watching& watching = *backend;
    Device device(std::move(backend));
    Config config = config_in("csml", precision);
    config.data.train = "synthetic:shapes?limit=40&size=20";
    config.data.workers = 0;
    config.train.epochs = config.train.max_steps = 1;
    config.method.warmup_epochs = 0;
    config.eval.knn_every_epochs = 0;
    resolve(config);
    const auto comm = Comm::local();
    RunOptions options;
    options.out = folder.path;
    pretrain(device, *comm, config, options);
    CHECK(watching.searched == std::set<DType>{type});
  }
}

TEST_CASE("the CPU refuses 16 bits in one line") {
  const auto device = Device::open("cpu");
  for (const char* precision : {"bf16", "fp16"})
    CHECK_THROWS_WITH_AS(make(*device, config_in("moco", precision)), doctest::Contains("needs a GPU (--device cuda)"),
                         UsageError);
  CHECK_THROWS_WITH_AS(compute_type("half", *device), doctest::Contains("use fp32, bf16 or fp16"), UsageError);
}
