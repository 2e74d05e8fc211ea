// Golden steps in every precision: whole training steps of MoCo and CsMl against PyTorch's in fp64. Each comparison is
// also printed as a JSON line, for scripts/gpu_check.sh. Runs on the CUDA kernels: on the host, or on a card with
// CSML_TEST_BACKEND=cuda:N.
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "engine/json.h"

#include "tests/backend.h"
#include "tests/method_fixture.h"

using namespace csml;
using namespace csml::test;

namespace {

/// A precision of training. u: half the distance of neighbouring numbers to their size, where factors of products are
/// rounded most coarsely.
struct Precision {
  const char *name, *train;
  bool tf32;
  double u;
};
constexpr Precision kPrecisions[] = {{"fp32", "fp32", false, 0x1p-24},
                                     {"tf32", "fp32", true, 0x1p-11},
                                     {"bf16", "bf16", false, 0x1p-8},
                                     {"fp16", "fp16", false, 0x1p-11}};

/// CSML_TF32 as a precision has it, while a device is open.
class Tf32 {
 public:
  explicit Tf32(bool on) { on ? setenv("CSML_TF32", "1", 1) : unsetenv("CSML_TF32"); }
  ~Tf32() { unsetenv("CSML_TF32"); }
};

/// ||ours - golden|| / ||golden|| over all arrays of a network.
double distance(const Golden& golden, const std::string& prefix, const std::vector<NamedArray>& ours) {
  double error = 0, norm = 0;
  for (const NamedArray& a : ours) {
    const std::vector<float> got = floats(a), want = golden.values(prefix + a.name);
    REQUIRE(got.size() == want.size());
    for (size_t i = 0; i < got.size(); ++i) {
      error += std::pow(double{got[i]} - want[i], 2);
      norm += std::pow(double{want[i]}, 2);
    }
  }
  return std::sqrt(error / norm);
}

std::vector<NamedArray> unscaled_gradient(Siamese& method, const nlohmann::json& log) {
  const Params& q = method.query_encoder().params();
  const double scale = log.value("loss_scale", 1.0);
  std::vector<float> values = q.grad().host<float>();
  for (float& v : values) v = static_cast<float>(v / scale);
  return to_host(q, "", Tensor::from(q.device(), q.grad().shape(), values));
}

/// The largest errors of the golden steps, by quantity.
std::map<std::string, double> errors_of(const std::string& name, const Precision& precision) {
  const Tf32 tf32(precision.tf32);
  const auto device = open_cuda_kernels();
  const Golden golden(name + "_steps");
  const bool csml = name == "csml";
  const auto method = make(*device, config_in(name, precision.train));
  std::map<std::string, double> worst;
  const auto see = [&](const char* quantity, double error) {
    if (!(error <= worst[quantity])) worst[quantity] = error;  // a NaN stays
  };
  for (int i = 0; i < 3; ++i) {
    const std::string step = cat("step{}/", i), after = cat("state{}/", i + 1);
    Siamese::Given given = constants(golden, step, csml);
    given.learning_rate = 0.06f;
    for (const std::string& v : view_names(name)) given.images.push_back(golden.tensor(*device, step + "view_" + v));
    set_state(*method, golden, cat("state{}/", i));
    const nlohmann::json log = one_step(*method, given);
    CHECK(log["finite"].get<bool>());
    const double loss = golden.scalar(step + "loss");
    see("loss", std::abs(log["loss"].get<double>() - loss) / loss);
    see("gradient", distance(golden, step + "grad/", unscaled_gradient(*method, log)));
    const std::vector<float> queue = method->queue().rows().host<float>(), want = golden.values(after + "queue");
    for (size_t j = 0; j < queue.size(); ++j) see("keys", std::abs(double{queue[j]} - want[j]));
    see("query encoder", distance(golden, after + "q/", to_host(method->query_encoder().params(), "")));
    see("momentum encoder", distance(golden, after + "k/", to_host(method->key_encoder().params(), "")));
  }
  return worst;
}

/// Closer bounds of single steps in 16 bits: twice what was measured on the host when they were set.
double closer_bound(const std::string& name, const std::string& precision, const std::string& quantity) {
  static const std::map<std::string, std::map<std::string, double>> bounds = {
      {"moco bf16",
       {{"loss", 2e-2}, {"gradient", 0.6}, {"keys", 2e-2}, {"query encoder", 4e-3}, {"momentum encoder", 5e-4}}},
      {"csml bf16",
       {{"loss", 3e-3}, {"gradient", 0.4}, {"keys", 1e-2}, {"query encoder", 1e-3}, {"momentum encoder", 5e-4}}},
      {"moco fp16",
       {{"loss", 4e-4}, {"gradient", 0.2}, {"keys", 3e-3}, {"query encoder", 2e-3}, {"momentum encoder", 6e-5}}},
      {"csml fp16",
       {{"loss", 2e-4}, {"gradient", 0.2}, {"keys", 2e-3}, {"query encoder", 3e-4}, {"momentum encoder", 6e-5}}}};
  const auto found = bounds.find(name + " " + precision);
  return found == bounds.end() ? INFINITY : found->second.at(quantity);
}

/// What rounding allows a quantity: multiples of u, two to three times what was measured on the host with the roundings
/// of cuDNN and cuBLASLt. Where u is coarse the gradient's error is that of units whose ReLU rounding switches: their
/// share goes with u, so the distance goes with its root, and so does that of the weights which follow. In f32 none
/// switches (`kink_margin` of tests/golden), and half a last digit of what is compared counts.
double allowed(const std::string& quantity, const Precision& precision) {
  struct Factor {
    double fine;    // of u, in f32
    double coarse;  // of u or its root, in the others
    bool root = false;
  };
  static const std::map<std::string, Factor> factors = {{"loss", {5, 5}},
                                                        {"gradient", {60, 10, true}},
                                                        {"keys", {10, 6}},
                                                        {"query encoder", {2, 0.06, true}},
                                                        {"momentum encoder", {2, 0.15}}};
  const Factor f = factors.at(quantity);
  if (precision.u < 0x1p-20) return f.fine * precision.u;
  return f.coarse * (f.root ? std::sqrt(precision.u) : precision.u);
}

}  // namespace

TEST_CASE("MoCo and CsMl steps in every precision are PyTorch's in fp64, to rounding") {
  for (const Precision& precision : kPrecisions)
    for (const char* name : {"moco", "csml"}) {
      CAPTURE(std::string(precision.name));
      CAPTURE(std::string(name));
      for (const auto& [quantity, error] : errors_of(name, precision)) {
        CAPTURE(quantity);
        const double most = std::min(allowed(quantity, precision), closer_bound(name, precision.name, quantity));
        std::puts(json_line({{"kind", "golden"},
                             {"method", name},
                             {"precision", precision.name},
                             {"quantity", quantity},
                             {"error", error},
                             {"allowed", most},
                             {"passed", error <= most}})
                      .c_str());
        CHECK(error <= most);
      }
    }
}
