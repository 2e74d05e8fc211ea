// ResNets against PyTorch: every stage, every gradient, running statistics, inference; weights in and out.
#include "models/resnet.h"

#include <cstring>

#include "csml/training/saved_model.h"
#include "models/projector.h"
#include "models/weights.h"

#include "tests/backend.h"
#include "tests/files.h"
#include "tests/golden.h"

using namespace csml;
using namespace csml::test;

namespace {

struct Network {
  Network(Device& device, const ResNetOptions& options, uint64_t seed = 0) : params(device), resnet(params, options) {
    params.build(seed, true);
  }
  Params params;
  ResNet resnet;
};

constexpr ResNetOptions kResNet18{.depth = 18, .cifar_stem = true, .width = 8};
constexpr ResNetOptions kResNet50{.depth = 50, .cifar_stem = false, .width = 4};

/// sum(features * r) as a scalar.
Var weighted_sum(const Var& features, const Tensor& r) {
  const int64_t n = r.size();
  return reshape(linear(reshape(features, {1, n}), Var(r.reshape({1, n})), {}), {1});
}

void expect_stages(Golden& golden, const std::string& prefix, const Stages& stages, bool cifar_stem) {
  golden.expect(prefix + "stem", cifar_stem ? stages.stem.value() : max_pool(stages.stem, 3, 2, 1).value());
  for (size_t i = 0; i < 4; ++i) {
    const std::string name = prefix + cat("layer{}", i + 1);
    CHECK(stages.stage[i].shape() == golden.shape(name));
    golden.expect(name, stages.stage[i].value());
  }
  golden.expect(prefix + "features", stages.pooled.value());
}

void compare_network(const std::string& name, const ResNetOptions& options) {
  const auto device = open_backend();
  Golden golden(name);
  const Golden weights(name + "_weights");
  const Network net(*device, options);
  CHECK(from_host(net.params, weights.arrays(), "").empty());

  const Tensor input = golden.tensor(*device, "input");
  expect_stages(golden, "eval/", net.resnet(Var(input), Forward::inference()), options.cifar_stem);

  const Tensor input_gradient = Tensor::full(*device, input.shape(), NAN);
  const Tensor statistics = like(net.params.buffers());
  net.params.begin_gradients();
  const Var x = Var::leaf(input, input_gradient);
  Var loss;
  {
    const Stages stages = net.resnet(x, {.training = true, .groups = 1, .statistics = statistics});
    expect_stages(golden, "train/", stages, options.cifar_stem);
    loss = weighted_sum(stages.pooled, golden.tensor(*device, "r"));
  }
  golden.expect("train/loss", loss.value());
  loss.backward();
  net.params.finish_gradients();
  golden.expect("grad/input", input_gradient);
  golden.expect_all("grad/", to_host(net.params, "", net.params.grad()));

  ema(statistics, net.params.buffers(), Tensor::full(*device, {1}, 0.9f));
  for (const NamedArray& a : to_host(net.params, ""))
    if (golden.contains("running/" + a.name)) golden.expect("running/" + a.name, floats(a));
  CHECK(golden.unseen().empty());
}

bool same(const NamedArray& a, const NamedArray& b) {
  return a.name == b.name && a.dtype == b.dtype && a.shape == b.shape && a.data == b.data;
}

}  // namespace

TEST_CASE("ResNet-18 with the CIFAR stem equals PyTorch") { compare_network("resnet18_cifar", kResNet18); }

TEST_CASE("ResNet-50 with the ImageNet stem equals PyTorch") { compare_network("resnet50_imagenet", kResNet50); }

TEST_CASE("parameter counts are torchvision's") {
  const auto device = open_backend();
  const std::vector<std::pair<int, int64_t>> published = {{18, 11'689'512 - 513'000},
                                                          {34, 21'797'672 - 513'000},
                                                          {50, 25'557'032 - 2'049'000},
                                                          {101, 44'549'160 - 2'049'000}};
  for (const auto& [depth, count] : published) {
    Params params(*device);
    const ResNet net(params, {.depth = depth});
    CHECK(params.count() == count);
    CHECK(net.feature_dim() == (depth < 50 ? 512 : 2048));
  }
  Params params(*device);
  CHECK_THROWS_WITH_AS(ResNet(params, {.depth = 20}), "model.depth = 20 is unknown; use 18, 34, 50 or 101", UsageError);
}

TEST_CASE("exported weights are the imported ones, bit for bit") {
  const auto device = open_backend();
  const Golden weights("resnet50_imagenet_weights");
  const Network first(*device, kResNet50, 1), second(*device, kResNet50, 2);
  from_host(first.params, weights.arrays(), "");
  const std::vector<NamedArray> exported = to_host(first.params, "some.prefix.");
  CHECK(exported.size() == weights.arrays().size());
  for (NamedArray a : exported) {
    a.name = a.name.substr(std::string("some.prefix.").size());
    CHECK_MESSAGE(same(a, weights.array(a.name)), a.name);
  }
  from_host(second.params, exported, "some.prefix.");
  CHECK(first.params.master().host<float>() == second.params.master().host<float>());
  CHECK(first.params.buffers().host<float>() == second.params.buffers().host<float>());

  // Through a file, as a release does it.
  const Folder folder;
  std::vector<HostArray> views;
  for (const NamedArray& a : exported) views.push_back({a.name, a.dtype, a.shape, a.data.data()});
  write_safetensors(folder.path / "weights.safetensors", views);
  const SafetensorsFile file = SafetensorsFile::open(folder.path / "weights.safetensors");
  for (const NamedArray& a : exported) CHECK_MESSAGE(same(file.read(a.name), a), a.name);
}

TEST_CASE("a flat tensor laid out like the parameters travels without the running statistics") {
  const auto device = open_backend();
  const Network net(*device, kResNet18, 3);
  const Tensor flat = like(net.params.master());
  fill(flat, 0);
  const std::vector<NamedArray> arrays = to_host(net.params, "momentum.", net.params.master());
  CHECK(arrays.size() == net.params.entries().size());
  CHECK(from_host(net.params, arrays, "momentum.", flat).empty());
  CHECK(flat.host<float>() == net.params.master().host<float>());
}

TEST_CASE("weights of another architecture are refused by name and change nothing") {
  const auto device = open_backend();
  const Golden weights("resnet18_cifar_weights");
  const Network net(*device, kResNet18, 4);
  const std::vector<float> before = net.params.master().host<float>();

  std::vector<NamedArray> missing = weights.arrays();
  std::erase_if(missing, [](const NamedArray& a) { return a.name == "layer3.1.bn2.bias"; });
  const std::string lacks = error_of([&] { from_host(net.params, missing, ""); });
  CHECK(contains(lacks, "'layer3.1.bn2.bias'"));
  CHECK(contains(lacks, "another architecture"));
  std::vector<NamedArray> no_statistics = weights.arrays();
  std::erase_if(no_statistics, [](const NamedArray& a) { return a.name == "bn1.running_var"; });
  CHECK(contains(error_of([&] { from_host(net.params, no_statistics, ""); }), "'bn1.running_var'"));

  std::vector<NamedArray> reshaped = weights.arrays();
  for (NamedArray& a : reshaped)
    if (a.name == "layer1.0.conv1.weight") a.shape = {8, 8, 9, 1};
  const std::string shape = error_of([&] { from_host(net.params, reshaped, ""); });
  CHECK(contains(shape, "'layer1.0.conv1.weight'"));
  CHECK(contains(shape, "[8, 8, 9, 1]"));
  CHECK(contains(shape, "[8, 8, 3, 3]"));

  std::vector<NamedArray> typed = weights.arrays();
  for (NamedArray& a : typed)
    if (a.name == "bn1.weight") a.dtype = DType::i32;
  CHECK(contains(error_of([&] { from_host(net.params, typed, ""); }), "'bn1.weight' is i32"));
  CHECK(net.params.master().host<float>() == before);

  std::vector<NamedArray> more = weights.arrays();
  more.push_back({"fc.weight", DType::f32, Shape{1}, std::vector<std::byte>(4)});
  CHECK(from_host(net.params, more, "") == std::vector<std::string>{"fc.weight"});
}

TEST_CASE("the layouts of filters are each other's inverse") {
  const Shape krsc{2, 3, 1, 4};  // K 2, R 3, S 1, C 4
  std::vector<float> values(24);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  const std::vector<float> kcrs = to_kcrs(values.data(), krsc);
  // [k,c,r,s] = ((k*4 + c)*3 + r)*1 + s holds [k,r,s,c] = ((k*3 + r)*1 + s)*4 + c
  for (size_t k = 0; k < 2; ++k)
    for (size_t c = 0; c < 4; ++c)
      for (size_t r = 0; r < 3; ++r) CHECK(kcrs[(k * 4 + c) * 3 + r] == values[(k * 3 + r) * 4 + c]);
  CHECK(to_krsc(kcrs.data(), krsc) == values);
}

TEST_CASE("the projection head is Linear - ReLU - Linear, or one Linear") {
  const auto device = open_backend();
  for (const bool mlp : {true, false}) {
    Params params(*device);
    const Projector head(params, {.in = 6, .hidden = 5, .out = 3, .mlp = mlp});
    params.build(7, true);
    std::vector<std::string> names;
    for (const Params::Entry& e : params.entries()) names.push_back(e.name);
    CHECK(names == (mlp ? std::vector<std::string>{"fc.0.weight", "fc.0.bias", "fc.2.weight", "fc.2.bias"}
                        : std::vector<std::string>{"fc.weight", "fc.bias"}));
    const std::vector<float> x{0.5f, -1, 2, 0.25f, 3, -0.75f};
    const std::vector<float> y =
        head(Var(Tensor::from(*device, {1, 6}, x)), Forward::inference()).value().host<float>();
    std::vector<std::vector<float>> values;
    for (const NamedArray& a : to_host(params, "")) values.push_back(floats(a));
    auto affine = [](const std::vector<float>& w, const std::vector<float>& b, const std::vector<double>& in) {
      std::vector<double> out;
      for (size_t o = 0; o < b.size(); ++o) {
        double sum = b[o];
        for (size_t i = 0; i < in.size(); ++i) sum += w[o * in.size() + i] * in[i];
        out.push_back(sum);
      }
      return out;
    };
    std::vector<double> want = affine(values[0], values[1], {x.begin(), x.end()});
    if (mlp) {
      for (double& h : want) h = std::max(h, 0.0);
      want = affine(values[2], values[3], want);
    }
    for (size_t i = 0; i < 3; ++i) CHECK(y[i] == doctest::Approx(want[i]).epsilon(1e-6));
  }
}

TEST_CASE("weights of extents that no encoder has are refused by name") {
  ArrayShapes shapes{{"conv1.weight", {64, 3, 7, 7}},
                     {"fc.0.weight", {64, 64}},
                     {"fc.0.bias", {64}},
                     {"fc.2.weight", {32, 64}},
                     {"fc.2.bias", {32}}};
  for (int layer = 1; layer <= 4; ++layer)
    for (int block = 0; block < 2; ++block) shapes[cat("layer{}.{}.conv1.weight", layer, block)] = {1};
  int channels = 0;
  bool has_head = false;
  const auto refused = [&] { return error_of([&] { recognise_model(shapes, "file", &channels, &has_head); }); };
  REQUIRE(refused().empty());
  CHECK(has_head);
  for (const int64_t extent : {int64_t{0}, int64_t{2000}, int64_t{1} << 32}) {
    shapes["conv1.weight"] = {extent, 3, 7, 0};
    CHECK(contains(refused(), extent == 2000 ? "2000 channels" : "no ResNet of ours"));
  }
  shapes["conv1.weight"] = {64, 3, 7, 7};
  shapes["fc.2.weight"] = {0, 64};
  CHECK(contains(refused(), "'fc.2.weight' has shape [0, 64]"));
}

TEST_CASE("a head is recognised where all its arrays are those of a projector, and only there") {
  ArrayShapes trunk{{"conv1.weight", {64, 3, 7, 7}}};
  for (int layer = 1; layer <= 4; ++layer)
    for (int block = 0; block < 2; ++block) trunk[cat("layer{}.{}.conv1.weight", layer, block)] = {1};
  const auto device = open_backend();
  for (const char* norm : {"none", "hidden", "all"}) {
    ModelConfig config{.depth = 18, .stem = "imagenet", .width = 4, .head_hidden = 48, .head_mlp = true, .dim = 24};
    config.head_bn = norm;
    const Encoder encoder(*device, config, 3, 1, false);
    ArrayShapes shapes = trunk;
    for (const NamedArray& a : to_host(encoder.params(), ""))
      if (a.name.starts_with("fc.")) shapes[a.name] = a.shape;
    shapes["fc.1.num_batches_tracked"] = {};
    int channels = 0;
    bool has_head = false;
    const ModelConfig found = recognise_model(shapes, "file", &channels, &has_head);
    CHECK(has_head);
    CHECK(found.head_bn == norm);
    CHECK(found.dim == 24);
    CHECK(found.head_hidden == 48);
    for (const char* change : {"fc.0.weight", "fc.4.weight", "fc.6.weight"}) {
      ArrayShapes other = shapes;  // one array less, or one of another head's
      if (other.erase(change) == 0) other[change] = {24, 24};
      recognise_model(other, "file", &channels, &has_head);
      CHECK_FALSE(has_head);
    }
  }
}
