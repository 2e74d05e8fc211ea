// The callers of cuDNN and cuBLASLt (kernels/cuda/conv.cpp, matmul.cpp) on the host: the libraries are stand-ins that
// do what their documentation says (tests/vendor), everything around them runs on the executor. What operands, layouts,
// scratch memory and conversions mean is tested here; the libraries themselves are only on a card.
#include "kernels/cuda/conv.h"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/versions.h"
#include "kernels/half.h"
#include "tests/op_cases.h"
#include "tests/simt/simt_backend.h"

// After the project's headers: doctest's CHECK replaces that of kernels/check.h from here on.
#include <doctest/doctest.h>

#include <cstdlib>
#include <set>

using namespace csml;
using namespace csml::test;

namespace {

class VendorBackend final : public SimtBackend {
 public:
  VendorBackend() : matmuls_((use_stand_ins(), context_), false), convolutions_(context_, matmuls_, {}) {}

  void conv2d(const Conv2d& a) override { convolutions_.forward(a); }
  void conv2d_grad_input(const Conv2dGradInput& a) override { convolutions_.grad_input(a); }
  void conv2d_grad_weight(const Conv2dGradWeight& a) override { convolutions_.grad_weight(a); }
  void matmul(const Matmul& a) override { matmuls_.matmul(a); }
  void set_recording(bool recording) { context_.set_recording(recording); }

 private:
  static void use_stand_ins() { ::setenv("CSML_CUDA_LIBRARIES", CSML_VENDOR_FOLDER, 1); }

  cuda::Matmuls matmuls_;
  cuda::Convolutions convolutions_;
};

/// Runs a case with every array between red zones, `shift` bytes off alignment. Empty, or what went wrong.
std::string run_case(Backend& be, const OpCase& c, size_t shift) {
  const Arrays in = c.inputs(false);
  Arrays want;
  c.reference(in, want);
  Bound bound;
  std::map<std::string, std::unique_ptr<RedZone>> zones;
  for (const Arg& arg : c.args) {
    auto& zone = zones[arg.name];
    zone = std::make_unique<RedZone>(be, static_cast<size_t>(arg.shape.size()) * size_of(arg.dtype), shift);
    if (arg.role != Role::output) zone->write(to_bytes(in.at(arg.name)));
    bound.add(arg.name, {zone->data(), arg.shape, arg.dtype});
  }
  c.call(be, bound);
  for (const Arg& arg : c.args) {
    if (const std::string error = zones[arg.name]->check(); !error.empty()) return c.name() + ": " + arg.name + error;
    if (arg.role == Role::input) {
      if (zones[arg.name]->read() != to_bytes(in.at(arg.name))) return c.name() + ": changed its input " + arg.name;
      continue;
    }
    Array expected = want.at(arg.name);
    expected.dtype = arg.dtype;
    const Array got = from_bytes(arg.shape, arg.dtype, zones[arg.name]->read());
    const std::string error = difference(c.name() + ": " + arg.name, got, expected, arg.tolerance);
    if (!error.empty()) return error;
  }
  return "";
}

/// The case with all its arrays, or all but some, in another element type.
OpCase with_type(OpCase c, DType dtype, const std::set<std::string>& but = {}) {
  c.detail += cat(" {}", name_of(dtype));
  for (Arg& arg : c.args) {
    if (!but.count(arg.name)) arg.dtype = dtype;
    // What a convolution adds to something is rounded to the 16-bit type before: it leaves cuDNN that way.
    if (c.op != "matmul" && arg.role == Role::in_out) arg.tolerance = rounded_to(dtype, arg.tolerance);
  }
  return c;
}

}  // namespace

TEST_CASE("convolutions and matrix products through the vendors' interfaces") {
  VendorBackend be;
  int cases = 0;
  for (const OpCase& c : op_cases()) {
    if (c.op != "conv2d" && c.op != "conv2d_grad_input" && c.op != "conv2d_grad_weight" && c.op != "matmul") continue;
    for (const size_t shift : {size_t{0}, size_of(DType::f32)}) {
      const std::string error = run_case(be, c, shift);
      CHECK_MESSAGE(error.empty(), error);
      ++cases;
    }
    for (const DType half : {DType::bf16, DType::f16})
      for (const size_t shift : {size_t{0}, size_of(half)}) {
        std::string error = run_case(be, with_type(c, half), shift);
        CHECK_MESSAGE(error.empty(), error);
        // 16-bit factors, f32 sums kept: products and weight gradients. The latter leave cuDNN in 16 bits, so their
        // error is that type's.
        if (c.op == "matmul") {
          error = run_case(be, with_type(c, half, {"c", "bias"}), shift & ~size_t{3});
          CHECK_MESSAGE(error.empty(), error);
        }
        if (c.op == "conv2d_grad_weight") {
          OpCase wide = with_type(c, half, {"dw"});
          for (Arg& arg : wide.args)
            if (arg.role == Role::output) arg.tolerance = rounded_to(half, arg.tolerance);
          error = run_case(be, wide, shift & ~size_t{3});
          CHECK_MESSAGE(error.empty(), error);
        }
        ++cases;
      }
  }
  CHECK(cases > 100);
}

TEST_CASE("a library of another major version is refused, an older one told") {
  CHECK(cuda::check_version("cuDNN", 91900, 91900) == "");
  CHECK(cuda::check_version("cuDNN", 92002, 91900) == "");
  CHECK(cuda::check_version("cuDNN", 91900, 91905) == "");  // patches may differ
  CHECK(cuda::check_version("cuDNN", 90100, 91900) ==
        "cuDNN 9.1.0 is older than 9.19.0, which csml was built with: it may lack what csml asks of it");
  CHECK_THROWS_WITH_AS(cuda::check_version("cuBLASLt", 120805, 130000),
                       "cuBLASLt 12.8.5 is not the 13.x that csml was built with; install that, or name its folder in "
                       "CSML_CUDA_LIBRARIES",
                       Error);
}

TEST_CASE("a plan is chosen outside of recordings") {
  VendorBackend be;
  std::vector<float> x(16, 1.f), w(4, 2.f), y(16, 0.f);
  const Backend::Conv2d conv{.x = {x.data(), {1, 4, 4, 1}, DType::f32},
                             .w = {w.data(), {1, 2, 2, 1}, DType::f32},
                             .y = {y.data(), {1, 2, 2, 1}, DType::f32},
                             .stride = 2};
  be.set_recording(true);
  CHECK_THROWS_AS(be.conv2d(conv), Error);
  be.set_recording(false);
  be.conv2d(conv);
  CHECK(y[3] == 8.f);
  be.set_recording(true);
  be.conv2d(conv);
  be.set_recording(false);
}

TEST_CASE("types that do not go together are refused") {
  VendorBackend be;
  std::vector<double> data(64);
  const auto view = [&](Shape shape, DType dtype) { return View{data.data(), shape, dtype}; };
  CHECK_THROWS_AS(be.conv2d({.x = view({1, 4, 4, 1}, DType::bf16),
                             .w = view({1, 1, 1, 1}, DType::f32),
                             .y = view({1, 4, 4, 1}, DType::bf16)}),
                  Error);
  CHECK_THROWS_AS(be.conv2d_grad_weight({.dy = view({1, 4, 4, 1}, DType::f32),
                                         .x = view({1, 4, 4, 1}, DType::f32),
                                         .dw = view({1, 1, 1, 1}, DType::bf16)}),
                  Error);
  CHECK_THROWS_AS(
      be.matmul({.a = view({2, 2}, DType::bf16), .b = view({2, 2}, DType::f16), .c = view({2, 2}, DType::f32)}), Error);
  CHECK_THROWS_AS(
      be.matmul({.a = view({2, 2}, DType::f32), .b = view({2, 2}, DType::f32), .c = view({2, 2}, DType::f16)}), Error);
}
