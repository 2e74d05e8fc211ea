// Every kernel against its reference in double, between red zones; repeatability; refused arguments.
#include "engine/tensor.h"
#include "kernels/cpu/onednn.h"
#include "tests/backend.h"
#include "tests/op_cases.h"

// After the project's headers: doctest's CHECK replaces that of kernels/check.h from here on.
#include <doctest/doctest.h>
#include <omp.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <memory>
#include <optional>
#include <set>

using namespace csml;
using namespace csml::test;

namespace {

struct Run {
  std::map<std::string, std::vector<std::byte>> outputs;
  std::string error;  // first thing that went wrong besides values
};

struct RunOptions {
  bool replayed = false;                                       // recorded, and the outputs of the replay taken
  bool shifted = false;                                        // arrays one element off the allocator's alignment
  const std::pair<std::string, std::string>* share = nullptr;  // output, input: one memory
};

/// Runs a case on fresh memory, every array between red zones.
Run run_case(Backend& be, const OpCase& c, const Arrays& in, RunOptions options = {}) {
  Bound bound;
  std::map<std::string, std::unique_ptr<RedZone>> zones;
  Run run;
  const auto note = [&](const std::string& arg, const std::string& what) {
    if (run.error.empty() && !what.empty()) run.error = c.name() + ": " + arg + " " + what;
  };
  for (const Arg& arg : c.args) {
    if (options.share && arg.name == options.share->first) continue;
    const size_t bytes = static_cast<size_t>(arg.shape.size()) * size_of(arg.dtype);
    auto& zone = zones[arg.name];
    zone = std::make_unique<RedZone>(be, bytes, options.shifted ? size_of(arg.dtype) : 0);
    if (arg.role != Role::output) zone->write(to_bytes(in.at(arg.name)));
    bound.add(arg.name, {zone->data(), arg.shape, arg.dtype});
  }
  if (options.share) bound.add(options.share->first, bound[options.share->second]);
  try {
    if (options.replayed) {
      const auto replay = be.record([&] { c.call(be, bound); });
      for (const Arg& arg : c.args)
        if (arg.role == Role::in_out)
          zones[arg.name]->write(to_bytes(in.at(arg.name)));
        else if (arg.role == Role::output)
          zones[arg.name]->write(
              std::vector<std::byte>(static_cast<size_t>(arg.shape.size()) * size_of(arg.dtype), std::byte(0xAB)));
      replay->run();
    } else {
      c.call(be, bound);
    }
    be.synchronize();
  } catch (const std::exception& e) { note("call", e.what()); }
  for (const Arg& arg : c.args) {
    const bool shares = options.share && arg.name == options.share->first;
    const RedZone& zone = *zones.at(shares ? options.share->second : arg.name);
    note(arg.name, zone.check());
    if (arg.role != Role::input)
      run.outputs[arg.name] = zone.read();
    else if (!(options.share && arg.name == options.share->second) && zone.read() != to_bytes(in.at(arg.name)))
      note(arg.name, "is an input and was changed");
  }
  return run;
}

/// Empty, or the first output that differs from the reference.
std::string compare(const OpCase& c, const Run& run, const Arrays& want) {
  if (!run.error.empty()) return run.error;
  for (const Arg& arg : c.args) {
    if (arg.role == Role::input) continue;
    const Array got = from_bytes(arg.shape, arg.dtype, run.outputs.at(arg.name));
    Array expected = want.at(arg.name);
    expected.dtype = arg.dtype;
    const std::string error = difference(c.name() + ": " + arg.name, got, expected, arg.tolerance);
    if (!error.empty()) return error;
  }
  return "";
}

std::string same_bytes(const OpCase& c, const Run& a, const Run& b, const char* when) {
  for (const auto& [name, bytes] : a.outputs)
    if (bytes != b.outputs.at(name)) return c.name() + ": " + name + " differs " + when;
  return "";
}

void report(const std::string& error) { CHECK_MESSAGE(error.empty(), error); }

struct Threads {
  explicit Threads(int n) : before(omp_get_max_threads()) { omp_set_num_threads(n); }
  ~Threads() { omp_set_num_threads(before); }
  int before;
};

/// On the executor with sanitizers, which is slow: what they look for, and nothing that the other build shows as well.
bool sanitized_executor() {
#ifdef __SANITIZE_ADDRESS__
  return backend_under_test() == "simt";
#else
  return false;
#endif
}

/// The cases of some calls that the backend under test can run: on the GPU's kernels also those in 16 bits; sanitized
/// on the executor in one type each: f32, bf16, f16 in turn.
std::vector<OpCase> cases_of(const std::set<std::string>& ops) {
  std::vector<OpCase> cases;
  size_t number = 0;
  for (const OpCase& c : op_cases()) {
    if (!ops.count(c.op)) continue;
    std::vector<OpCase> typed{c};
    if (backend_under_test() != "cpu")
      for (const DType type : {DType::bf16, DType::f16})
        for (const char* only : {"", "x", "y"})  // axpy converts
          if (c.op == "axpy" || !*only)
            if (auto other = in_type(c, type, only)) typed.push_back(*other);
    if (sanitized_executor()) typed = {typed[number++ % typed.size()]};
    cases.insert(cases.end(), typed.begin(), typed.end());
  }
  return cases;
}

/// All cases of some calls: values, red zones, alignment, aliasing, repeatability, replay, number of threads. Sanitized
/// on the executor: values, red zones and alignment.
void check_family(const std::set<std::string>& ops) {
  const auto device = open_backend();
  Backend& be = device->backend();
  std::set<std::string> seen;
  for (const OpCase& c : cases_of(ops)) {
    seen.insert(c.op);
    for (const bool outliers : {false, true}) {
      if (!outliers && sanitized_executor()) continue;
      const Arrays in = c.inputs(outliers);
      Arrays want;
      c.reference(in, want);
      Threads two(2);
      const Run first = run_case(be, c, in);
      std::string error = compare(c, first, want);
      if (sanitized_executor()) {
        if (error.empty()) error = compare(c, run_case(be, c, in, {.shifted = true}), want);
        report(error);
        continue;
      }
      if (error.empty()) error = same_bytes(c, first, run_case(be, c, in), "when called twice");
      if (error.empty()) error = same_bytes(c, first, run_case(be, c, in, {.replayed = true}), "when replayed");
      if (error.empty()) error = compare(c, run_case(be, c, in, {.shifted = true}), want);
      for (const auto& pair : c.in_place)
        if (error.empty()) error = same_bytes(c, first, run_case(be, c, in, {.share = &pair}), "when in place");
      if (error.empty()) {
        Threads one(1);
        const Run alone = run_case(be, c, in);
        error = compare(c, alone, want);
        if (error.empty() && c.same_for_any_threads) error = same_bytes(c, first, alone, "with one thread");
      }
      report(error.empty() || !outliers ? error : error + " [with outliers]");
    }
  }
  CHECK(seen == ops);
}

}  // namespace

TEST_CASE("elementwise calls") { check_family({"fill", "copy", "axpy", "relu", "relu_grad", "column_sum", "gather"}); }
TEST_CASE("convolution") { check_family({"conv2d", "conv2d_grad_input", "conv2d_grad_weight"}); }
TEST_CASE("matrix product") { check_family({"matmul"}); }
TEST_CASE("pooling") { check_family({"max_pool", "max_pool_grad", "global_avg_pool", "global_avg_pool_grad"}); }
TEST_CASE("batch norm") { check_family({"batch_norm", "batch_norm_grad", "batch_norm_inference"}); }
TEST_CASE("batch norm in parts") {
  check_family(
      {"batch_norm_moments", "batch_norm_merge", "batch_norm_apply", "batch_norm_grad_sums", "batch_norm_grad_apply"});
}
TEST_CASE("losses") { check_family({"l2_normalize", "l2_normalize_grad", "info_nce", "cross_entropy"}); }
TEST_CASE("top k") { check_family({"top_k"}); }
TEST_CASE("commit calls") {
  check_family({"all_finite", "sgd", "lars", "adamw", "ema", "update_loss_scale", "ring_write"});
}
TEST_CASE("losses of several positives") { check_family({"row_dot", "scale_rows", "multi_positive"}); }
TEST_CASE("windows of maps") { check_family({"gather_window", "gather_window_grad", "best_window"}); }
TEST_CASE("augmentation") { check_family({"augment", "cut_mix"}); }

TEST_CASE("images of a large batch are augmented to the same bits as alone") {
  if (backend_under_test() != "cpu") return;  // it is the CPU that writes large outputs past its caches
  const auto device = open_backend();
  Backend& be = device->backend();
  const int64_t count = 8, height = 224, width = 208, pixels = height * width * 3;
  RedZone images(be, count * pixels), params(be, count * sizeof(ColorParams)), all(be, count * pixels * sizeof(float)),
      one(be, pixels * sizeof(float));
  Random random(0, Purpose::test);
  std::vector<std::byte> bytes(static_cast<size_t>(count * pixels));
  for (std::byte& x : bytes) x = static_cast<std::byte>(random.below(256));
  images.write(bytes);
  std::vector<std::byte> rows;
  for (int i = 0; i < count; ++i) {
    ColorParams p{.contrast = i % 3 ? 0.7f : 1, .hue = 0.05f, .order = static_cast<float>(3 * i - 1)};
    p.gray = i % 4 == 1, p.blur_sigma = i % 3 == 2 ? 1.5f : 0, p.flip = i % 2;
    const auto* at = reinterpret_cast<const std::byte*>(&p);
    rows.insert(rows.end(), at, at + sizeof p);
  }
  params.write(rows);
  const auto augment = [&](int64_t first, int64_t n, RedZone& y) {
    const auto* from = static_cast<const uint8_t*>(images.data()) + first * pixels;
    const auto* drawn = static_cast<const ColorParams*>(params.data()) + first;
    be.augment({.images = {from, {n, height, width, 3}, DType::u8},
                .params = {drawn, {n, ColorParams::kColumns}},
                .y = {y.data(), {n, height, width, 3}}});
    be.synchronize();
    CHECK(y.check().empty());
    return y.read();
  };
  const std::vector<std::byte> together = augment(0, count, all);
  for (int64_t i = 0; i < count; ++i) {
    const std::vector<std::byte> alone = augment(i, 1, one);
    CHECK(std::equal(alone.begin(), alone.end(), together.begin() + i * static_cast<int64_t>(alone.size())));
  }
}

TEST_CASE("augmentation refuses factors that are not finite") {
  if (backend_under_test() != "cpu") return;  // a card does not look at its parameters
  const auto device = open_backend();
  const uint8_t pixels[12] = {};
  float y[12];
  const ColorParams p{.contrast = std::numeric_limits<float>::quiet_NaN(), .order = 0};
  CHECK_THROWS_AS(device->backend().augment({.images = {pixels, {1, 2, 2, 3}, DType::u8},
                                             .params = {&p, {1, ColorParams::kColumns}},
                                             .y = {y, {1, 2, 2, 3}}}),
                  Error);
}

TEST_CASE("the table covers every call of the backend") {
  std::set<std::string> covered, names;
  for (const OpCase& c : op_cases()) {
    covered.insert(c.op);
    if (!names.insert(c.name()).second) FAIL_CHECK("two cases are called " << c.name());
  }
  const std::set<std::string> listed(backend_calls().begin(), backend_calls().end());
  CHECK(covered == listed);

  std::ifstream header("kernels/backend.h");
  if (!header) {
    MESSAGE("skipped: kernels/backend.h not present in the working directory");
    return;
  }
  std::set<std::string> declared;
  for (std::string line; std::getline(header, line);) {
    const std::string start = "  virtual void ", argument = "(const ";
    const size_t open = line.find(argument), close = line.find("&) = 0;");
    if (line.rfind(start, 0) == 0 && open != std::string::npos && close != std::string::npos)
      declared.insert(line.substr(start.size(), open - start.size()));
  }
  CHECK(declared == listed);
}

#ifndef __SANITIZE_ADDRESS__  // there the accesses themselves end the program: simt_faults_test.cpp
TEST_CASE("the red zones see what they are for") {
  const auto device = open_backend();
  if (device->backend().stream()) return;  // the host cannot reach a card's memory
  RedZone zone(device->backend(), 12);
  CHECK(zone.check().empty());
  float* data = static_cast<float*>(zone.data());
  CHECK(std::isnan(data[-1]));
  CHECK(std::isnan(data[0]));
  CHECK(std::isnan(data[3]));
  data[2] = 1;
  CHECK(zone.check().empty());
  data[3] = 1;
  CHECK(zone.check().find("after its end") != std::string::npos);
  RedZone other(device->backend(), 5, 4);
  static_cast<char*>(other.data())[-1] = 0;
  CHECK(other.check() == "written 1 bytes before its start");
}
#endif

TEST_CASE("the comparison refuses what it should") {
  Array want({4}), got({4});
  want.v = {1, -2, 3, 0};
  got.v = {1, -2, 3, 1e-6};
  CHECK(difference("x", got, want).empty());
  got[1] = -2.001;
  CHECK(difference("x", got, want).find("worst element 1") != std::string::npos);
  got.v = {1, -2, 3, std::nan("")};
  CHECK(!difference("x", got, want).empty());
  got.v = {1, -2, 3, 1e-9};
  CHECK(!difference("x", got, want, kExact).empty());
  got.dtype = want.dtype = DType::i32;
  got.v = {1, -2, 4, 0};
  CHECK(!difference("x", got, want).empty());
}

TEST_CASE("wrong shapes are refused with a message") {
  const auto device = open_backend();
  Backend& be = device->backend();
  // Dropping the last row of one array at a time must never be accepted silently, unless the array can be any size.
  const std::set<std::string> free_size = {"fill y",           "all_finite x",    "gather x",
                                           "top_k bank",       "info_nce queue",  "column_sum x",
                                           "ring_write queue", "ring_write rows", "batch_norm_grad_apply parts"};
  std::set<std::string> done;
  for (const OpCase& c : op_cases()) {
    if (!done.insert(c.op).second) continue;
    const OpCase* chosen = nullptr;  // a case where every array has rows to lose
    for (const OpCase& other : op_cases()) {
      if (other.op != c.op) continue;
      bool fits = true;
      for (const Arg& arg : other.args) fits = fits && arg.shape.rank() >= 1 && arg.shape[0] >= 1;
      if (fits && (!chosen || other.args.size() > chosen->args.size())) chosen = &other;
    }
    REQUIRE(chosen);
    const Arrays in = chosen->inputs(false);
    for (const Arg& wrong : chosen->args) {
      if (free_size.count(c.op + " " + wrong.name)) continue;
      OpCase shorter = *chosen;
      for (Arg& arg : shorter.args)
        if (arg.name == wrong.name) arg.shape = arg.shape.with_rows(arg.shape[0] - 1);
      Arrays cut = in;
      if (auto found = cut.find(wrong.name); found != cut.end()) {
        found->second.shape = wrong.shape.with_rows(wrong.shape[0] - 1);
        found->second.v.resize(static_cast<size_t>(found->second.shape.size()));
      }
      const Run run = run_case(be, shorter, cut);
      if (run.error.find("call ") == std::string::npos)
        FAIL_CHECK(chosen->name() << ": " << wrong.name << " with one row less was accepted");
    }
  }
}

TEST_CASE("one pass of sgd has the bits of the calls it replaces") {
  const auto device = open_backend();
  Backend& be = device->backend();
  constexpr int64_t kSize = 20011, kAveraged = 17003;  // several blocks of the CPU's pass, odd ends
  Random random = random_of("fused sgd");
  const auto normal_tensor = [&](int64_t n) {
    std::vector<float> values(static_cast<size_t>(n));
    for (float& v : values) v = random.normal();
    return Tensor::from(*device, {n}, values);
  };
  const auto copy_of = [](const Tensor& t) { return Tensor::from(t.device(), t.shape(), t.host<float>()); };
  const Tensor rate = Tensor::full(*device, {1}, 0.03f), keep = Tensor::full(*device, {1}, 0.996f);
  for (const DType type : {DType::bf16, DType::f16}) {
    const Tensor grad = normal_tensor(kSize), param = normal_tensor(kSize), buffer = normal_tensor(kSize);
    const Tensor average = normal_tensor(kAveraged);
    const Tensor param2 = copy_of(param), buffer2 = copy_of(buffer), average2 = copy_of(average);
    const Tensor param_copy(*device, {kSize}, type), average_copy(*device, {kAveraged}, type);
    for (int step = 0; step < 3; ++step) {
      be.sgd({.grad = grad,
              .param = param,
              .buffer = buffer,
              .learning_rate = rate,
              .momentum = 0.9f,
              .weight_decay = 1e-4f,
              .average = average,
              .average_momentum = keep,
              .param_copy = param_copy,
              .average_copy = average_copy});
      be.sgd({.grad = grad,
              .param = param2,
              .buffer = buffer2,
              .learning_rate = rate,
              .momentum = 0.9f,
              .weight_decay = 1e-4f});
      be.ema({.x = param2.span(0, {kAveraged}), .y = average2, .momentum = keep});
    }
    CHECK(param.host<float>() == param2.host<float>());
    CHECK(buffer.host<float>() == buffer2.host<float>());
    CHECK(average.host<float>() == average2.host<float>());
    const auto bytes_of = [&](const Tensor& t) {
      std::vector<std::byte> bytes(t.bytes());
      t.download_bytes(bytes.data());
      return bytes;
    };
    const auto rounded = [&](const Tensor& t) {
      const std::vector<float> values = t.host<float>();
      Array a(t.shape(), type);
      a.v.assign(values.begin(), values.end());
      return to_bytes(a);
    };
    CHECK(bytes_of(param_copy) == rounded(param2));
    CHECK(bytes_of(average_copy) == rounded(average2));
  }
}

TEST_CASE("gather refuses an index out of range") {
  const auto device = open_backend();
  Backend& be = device->backend();
  for (const int32_t wrong : {-1, 3}) {
    RedZone x(be, 24), index(be, 4), y(be, 8);
    be.upload(index.data(), &wrong, 4);
    const auto call = [&] {
      be.gather(
          {.x = {x.data(), Shape{3, 2}}, .index = {index.data(), Shape{1}, DType::i32}, .y = {y.data(), Shape{1, 2}}});
      be.synchronize();  // an index that lies in device memory is judged there
    };
    CHECK_THROWS_AS(call(), Error);
    CHECK_NOTHROW(be.synchronize());
  }
}

TEST_CASE("gather_window refuses a window that leaves the map") {
  const auto device = open_backend();
  Backend& be = device->backend();
  const std::array<int32_t, 2> wrong[] = {{2, 0}, {0, 3}, {-1, 0}, {0, -1}};  // of 2 x 2 in 3 x 4
  for (const auto& at : wrong) {
    CAPTURE(at[0]);
    CAPTURE(at[1]);
    RedZone map(be, 12 * sizeof(float)), window(be, 4 * sizeof(float)), corner(be, sizeof at);
    be.upload(corner.data(), at.data(), sizeof at);
    const View x{map.data(), Shape{1, 3, 4, 1}}, y{window.data(), Shape{1, 2, 2, 1}};
    const ConstView where{corner.data(), Shape{1, 2}, DType::i32};
    const std::function<void()> calls[] = {
        [&] { be.gather_window({.x = x, .corner = where, .y = y}); },
        [&] { be.gather_window_grad({.dy = y, .corner = where, .dx = x}); },
        [&] { be.gather_window_grad({.dy = y, .corner = where, .dx = x, .write = Write::accumulate}); }};
    for (const auto& call : calls) {
      const auto judged = [&] {
        call();
        be.synchronize();  // a corner that lies in device memory is judged there
      };
      CHECK_THROWS_AS(judged(), Error);
      CHECK_NOTHROW(be.synchronize());
    }
  }
}

TEST_CASE("the cases for timing are calls the backend accepts") {
  if (backend_under_test() == "simt") return;  // large
  const auto device = open_backend();
  // Over all parameters, or a whole bank; their shapes are those of any other case.
  const std::set<std::string> large = {"top_k", "sgd", "lars", "adamw", "ema", "all_finite"};
  const std::set<std::string> moves = {"fill",      "copy", "gather", "cut_mix", "gather_window", "gather_window_grad",
                                       "ring_write"};
  for (const bool cifar : {true, false})
    for (const OpCase& c : bench_cases(cifar, 1)) {
      if (large.contains(c.op)) continue;
      Arrays zeros;
      for (const Arg& arg : c.args) zeros[arg.name] = Array(arg.shape, arg.dtype);
      const Run run = run_case(device->backend(), c, zeros);
      CHECK_MESSAGE(run.error.empty(), run.error);
      CHECK(c.bytes() > 0);
      CHECK((c.flops > 0) != moves.contains(c.op));
    }
}

TEST_CASE("every call has a case for timing") {
  for (const bool cifar : {true, false}) {
    std::set<std::string> timed;
    for (const OpCase& c : bench_cases(cifar, 1)) timed.insert(c.op);
    if (cifar) timed.insert({"max_pool", "max_pool_grad"});  // that network has none
    for (const std::string& call : backend_calls()) CHECK_MESSAGE(timed.contains(call), call);
  }
}

TEST_CASE("no convolution of a ResNet runs in oneDNN's reference code") {
  if (backend_under_test() != "cpu") return;
  for (const bool cifar : {true, false})
    for (const OpCase& c : bench_cases(cifar, 8)) {
      Bound bound;
      for (const Arg& arg : c.args) bound.add(arg.name, {nullptr, arg.shape, arg.dtype});
      const auto at = [&](const char* name) { return bound[name]; };
      std::string chosen;
      const bool strided = c.detail.find("stride 2") != std::string::npos;
      const int stride = strided ? 2 : 1, pad = c.detail.back() - '0';
      if (c.op == "conv2d")
        chosen = cpu::conv_implementation(
            Backend::Conv2d{.x = at("x"), .w = at("w"), .y = at("y"), .stride = stride, .pad = pad});
      else if (c.op == "conv2d_grad_input")
        chosen = cpu::conv_implementation(
            Backend::Conv2dGradInput{.dy = at("dy"), .w = at("w"), .dx = at("dx"), .stride = stride, .pad = pad});
      else if (c.op == "conv2d_grad_weight")
        chosen = cpu::conv_implementation(
            Backend::Conv2dGradWeight{.dy = at("dy"), .x = at("x"), .dw = at("dw"), .stride = stride, .pad = pad});
      else
        continue;
      CHECK(!chosen.empty());
      if (chosen.find("ref") != std::string::npos) FAIL_CHECK(c.name() << " runs in " << chosen);
    }
}
