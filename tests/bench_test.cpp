// csml bench's steps and parts in 16 bits against the same in f32. Runs on the CUDA kernels: on the host, or on a card
// with CSML_TEST_BACKEND=cuda:N.
#include "apps/bench.h"

#include <cmath>
#include <functional>

#include "engine/precision.h"
#include "kernels/half.h"

#include "tests/backend.h"
#include "tests/files.h"
#include "tests/golden.h"

using namespace csml;
using namespace csml::test;

namespace {

const char* const kHalves[] = {"bf16", "fp16"};

/// Half the distance of neighbouring numbers of a 16-bit type, to their size.
double unit_roundoff(const std::string& precision) { return precision == "bf16" ? 0x1p-8 : 0x1p-11; }

std::unique_ptr<BenchWork> make_work(Device& device, const WorkOptions& o) {
  return o.size.empty() ? make_step(device, o) : make_part(device, o);
}

/// What csml bench --exchange tells of a work's first run that took effect.
class Told {
 public:
  explicit Told(const WorkOptions& options) {
    const auto device = open_cuda_kernels();
    const auto work = make_work(*device, options);
    CHECK(work->about()["precision"] == options.precision);
    Exchange exchange;
    work->put_inputs(exchange);
    do {
      REQUIRE(runs_++ < 40);
      work->run();
    } while (!work->put_results(exchange));
    const Folder folder;
    exchange.write(folder.path / "told");
    const SafetensorsFile file = SafetensorsFile::open(folder.path / "told");
    for (const auto& [name, info] : file.arrays()) arrays_[name] = file.read(name);
  }

  int runs() const { return runs_; }
  const NamedArray& array(const std::string& name) const { return arrays_.at(name); }
  /// All values of the arrays whose names start with `prefix`, in f64.
  std::vector<double> all(const std::string& prefix) const {
    std::vector<double> out;
    for (const auto& [name, a] : arrays_)
      if (name.starts_with(prefix)) append(out, a);
    REQUIRE_FALSE(out.empty());
    return out;
  }

 private:
  template <class T>
  static void append_as(std::vector<double>& out, const NamedArray& a) {
    std::vector<T> values(a.data.size() / sizeof(T));
    std::memcpy(values.data(), a.data.data(), a.data.size());
    for (const T& v : values) out.push_back(static_cast<double>(float(v)));
  }
  static void append(std::vector<double>& out, const NamedArray& a) {
    if (a.dtype == DType::f32) return append_as<float>(out, a);
    if (a.dtype == DType::bf16) return append_as<bf16>(out, a);
    REQUIRE(a.dtype == DType::f16);
    append_as<f16>(out, a);
  }

  std::map<std::string, NamedArray> arrays_;
  int runs_ = 0;
};

/// ||a - b|| / ||b||
double distance(const std::vector<double>& a, const std::vector<double>& b) {
  REQUIRE(a.size() == b.size());
  double difference = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return std::sqrt(difference / norm);
}

}  // namespace

TEST_CASE("bench: the supervised step in 16 bits is the one in f32, to rounding") {
  const auto told = [](const std::string& precision) {
    return Told({.name = "resnet18_cifar", .precision = precision, .batch = 4});
  };
  const Told f32 = told("fp32");
  CHECK(f32.runs() == 1);
  for (const std::string precision : kHalves) {
    CAPTURE(precision);
    const Told half = told(precision);
    const double u = unit_roundoff(precision);
    const auto far = [&](const char* prefix) { return distance(half.all(prefix), f32.all(prefix)); };
    MESSAGE(
        cat("{}: loss {:.2f} u, gradient {:.1f} sqrt(u), of the linear layer {:.1f} u, weights {:.2f} sqrt(u), "
            "means {:.1f} u, variances {:.1f} u",
            precision, far("loss") / u, far("buffer/") / std::sqrt(u), far("buffer/fc.") / u,
            far("after/") / std::sqrt(u), far("after/bn1.running_mean") / u, far("after/bn1.running_var") / u));
    // About twice what was measured on the host. The whole gradient's error is that of units whose ReLU rounding
    // switches, whose share goes with the rounding and the distance with its root; the linear layer's is rounding's.
    CHECK(far("before/") == 0);
    CHECK(far("loss") <= u);
    CHECK(far("buffer/") <= 10 * std::sqrt(u));
    CHECK(far("buffer/fc.") <= 10 * u);
    CHECK(far("buffer/fc.") >= u / 10);  // 16 bits were computed in
    CHECK(far("after/") <= 0.05 * std::sqrt(u));
    CHECK(far("after/bn1.running_mean") <= 4 * u);
    CHECK(far("after/bn1.running_var") <= 0.2 * u);
  }
}

TEST_CASE("bench: supervised steps that overflow in fp16 change nothing but the loss scale, recorded ones too") {
  // At 32 px the last map of the 7x7 stem's network is one pixel: statistics over four values, large gradients.
  const auto told = [](const std::string& precision) {
    return Told({.name = "resnet18", .precision = precision, .batch = 4});
  };
  const Told f32 = told("fp32"), fp16 = told("fp16");
  CHECK(fp16.runs() > 2);
  MESSAGE(cat("{} runs: loss {:.1e}, statistics {:.1e}", fp16.runs(), distance(fp16.all("loss"), f32.all("loss")),
              distance(fp16.all("after/bn1.running"), f32.all("after/bn1.running"))));
  CHECK(distance(fp16.all("loss"), f32.all("loss")) <= 1e-2);
  CHECK(distance(fp16.all("after/bn1.running"), f32.all("after/bn1.running")) <= 1e-4);
  // Each run would have moved weights and momentum as far again.
  CHECK(distance(fp16.all("buffer/fc."), f32.all("buffer/fc.")) <= 0.1);
  CHECK(distance(fp16.all("after/fc."), f32.all("after/fc.")) <= 0.02);
}

TEST_CASE("bench: InfoNCE in 16 bits is the one in f32, to rounding") {
  const auto told = [](const std::string& precision) {
    return Told({.name = "info_nce", .precision = precision, .size = {24, 300, 64, 2}});
  };
  const Told f32 = told("fp32");
  for (const std::string precision : kHalves) {
    CAPTURE(precision);
    const Told half = told(precision);
    const double u = unit_roundoff(precision);
    const auto far = [&](const char* name) { return distance(half.all(name), f32.all(name)); };
    CHECK(half.array("queue").dtype == (precision == "bf16" ? DType::bf16 : DType::f16));
    CHECK(half.array("query").dtype == half.array("queue").dtype);
    CHECK(half.array("dquery").dtype == DType::f32);
    MESSAGE(cat("{}: queue {:.2f} u, loss {:.2f} u, gradient {:.2f} u", precision, far("queue") / u, far("loss") / u,
                far("dquery") / u));
    CHECK(far("queue") >= u / 10);
    CHECK(far("queue") <= u);
    CHECK(far("loss") <= u / 4);
    CHECK(far("dquery") <= 1.5 * u);
  }
}

TEST_CASE("bench: top-k in 16 bits finds the rows of f32, ties included") {
  const auto told = [](const std::string& precision) {
    return Told({.name = "top_k", .precision = precision, .size = {20, 300, 8, 5}});
  };
  const Told f32 = told("fp32");
  for (const std::string precision : kHalves) {
    CAPTURE(precision);
    const Told half = told(precision);
    CHECK(half.array("rows").dtype == (precision == "bf16" ? DType::bf16 : DType::f16));
    CHECK(half.all("rows") == f32.all("rows"));
    CHECK(half.array("index").data == f32.array("index").data);
    CHECK(half.array("scores").data == f32.array("scores").data);
  }
}

TEST_CASE("bench: the commit in 16 bits is f32's, whatever the loss scale, and leaves rounded copies") {
  const auto told = [](const std::string& precision) {
    return Told({.name = "commit", .precision = precision, .size = {3000}});
  };
  const Told f32 = told("fp32");
  for (const std::string precision : kHalves) {
    CAPTURE(precision);
    const Told half = told(precision);
    for (const char* name : {"gradient", "after", "key"}) {
      CAPTURE(std::string(name));
      CHECK(half.array(name).data == f32.array(name).data);
    }
    for (const std::string name : {"after", "key"}) {
      const std::vector<double> copy = half.all(name + ".copy");
      std::vector<double> rounded;
      for (const double x : floats(half.array(name)))
        rounded.push_back(precision == "bf16" ? float(bf16(static_cast<float>(x))) : float(f16(static_cast<float>(x))));
      CHECK(copy == rounded);
    }
  }
}

TEST_CASE("bench: the CPU refuses steps and parts in 16 bits in one line") {
  const auto device = Device::open("cpu");
  for (const std::string precision : kHalves) {
    CAPTURE(precision);
    for (const char* name : {"resnet50", "moco"})
      CHECK_THROWS_WITH_AS(make_step(*device, {.name = name, .precision = precision, .given = true}),
                           doctest::Contains("needs a GPU (--device cuda)"), UsageError);
    for (const char* name : {"info_nce", "top_k", "commit"})
      CHECK_THROWS_WITH_AS(make_part(*device, {.name = name, .precision = precision}),
                           doctest::Contains("needs a GPU (--device cuda)"), UsageError);
  }
}
