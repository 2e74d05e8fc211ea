// What the tests of the methods share: a tiny configuration, inputs that hashes give, everything a step may change.
// Include it after the project's headers.
#pragma once

#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "csml/method/resolve.h"
#include "csml/method/siamese.h"
#include "data/dataset.h"
#include "data/loader.h"
#include "models/weights.h"

#include "tests/files.h"
#include "tests/golden.h"

namespace csml::test {

constexpr int64_t kBatch = 8, kSize = 16;

/// The configuration of the golden steps (tests/golden/README.md).
inline Config golden_config(const std::string& method) {
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

/// The same in a precision of training, with the loss scale that fp16 starts from.
inline Config config_in(const std::string& method, const std::string& precision, float loss_scale = 1024) {
  Config c = golden_config(method);
  c.train.precision = precision;
  c.train.loss_scale.initial = loss_scale;
  return c;
}

inline std::unique_ptr<Siamese> make(Device& device, const Config& config) {
  return std::make_unique<Siamese>(device, config, 3, plan_of(config));
}

/// Everything a step may change, by name. Bytes, so that NaN equals itself.
inline std::map<std::string, std::vector<std::byte>> snapshot(Method& method) {
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
inline std::string changes(const std::map<std::string, std::vector<std::byte>>& a,
                           const std::map<std::string, std::vector<std::byte>>& b) {
  std::string names;
  for (const auto& [name, bytes] : a)
    if (b.at(name) != bytes) names += (names.empty() ? "" : ", ") + name;
  return names;
}

/// The method's view names in the order of its inputs; key views are those with a permutation.
inline std::vector<std::string> view_names(const std::string& method) {
  return method == "moco" ? std::vector<std::string>{"q", "k"} : std::vector<std::string>{"q", "k", "p", "kp"};
}

/// f32(3.4 u - 1.7) with u from the hash of a name.
inline Tensor hashed_view(Device& device, const std::string& name) {
  std::vector<float> values(kBatch * kSize * kSize * 3);
  const uint64_t seed = test::seed_of(name);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(3.4 * hash_uniform(seed, i) - 1.7);
  return Tensor::from(device, {kBatch, kSize, kSize, 3}, values);
}

inline std::vector<int32_t> identity(int64_t n = kBatch) {
  std::vector<int32_t> p(static_cast<size_t>(n));
  std::iota(p.begin(), p.end(), 0);
  return p;
}

inline Siamese::Given simple(Device& device, const std::vector<std::string>& views, int step = 0) {
  Siamese::Given given;
  for (const std::string& v : views) given.images.push_back(hashed_view(device, cat("method test/{}/{}", step, v)));
  given.permutations = {{6, 1, 4, 3, 0, 7, 2, 5}, {3, 4, 5, 6, 7, 0, 1, 2}};
  given.box = {2, 3, 9, 12};
  given.lambda = 1 - 63.f / 256;
  given.weights = {0.5f, 0.5f};
  given.learning_rate = 0.03f;
  return given;
}

/// A tensor of Method::state().
inline Tensor state_of(const Method& method, const std::string& name) {
  for (const auto& [key, tensor] : method.state())
    if (key == name) return tensor;
  FAIL(cat("no state '{}'", name));
  return {};
}

/// Puts a method into the state p ("state0/") of a file of training steps.
inline void set_state(Method& method, const Golden& golden, const std::string& p) {
  const Params& q = method.query_encoder().params();
  CHECK(from_host(q, golden.arrays(p + "q/"), p + "q/").empty());
  CHECK(from_host(method.key_encoder().params(), golden.arrays(p + "k/"), p + "k/").empty());
  from_host(q, golden.arrays(p + "momentum/"), p + "momentum/", state_of(method, "optimizer.momentum"));
  state_of(method, "queue.res5").upload(golden.values(p + "queue"));
  state_of(method, "queue.res5.cursor").upload(golden.values<int64_t>(p + "ptr"));
}

/// What a golden step is given, but for its images.
inline Siamese::Given constants(const Golden& golden, const std::string& p, bool csml) {
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

/// What the log says of one step.
inline nlohmann::json one_step(Siamese& method, const Siamese::Given& given) {
  method.load_given(given);
  method.step();
  return method.measure(1);
}

inline double relative_difference(const Tensor& a, const Tensor& b) {
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

}  // namespace csml::test
