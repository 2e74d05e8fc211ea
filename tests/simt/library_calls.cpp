#include "tests/simt/library_calls.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/cpu/kernels.h"
#include "kernels/half.h"

namespace csml::test::library {

namespace {

/// f(T{}) with the C++ type of a 16-bit element type.
template <class F>
void with_half(DType type, F&& f) {
  CHECK(type == DType::bf16 || type == DType::f16, "element type {}: must be f32, bf16 or f16", name_of(type));
  if (type == DType::bf16)
    f(bf16{});
  else
    f(f16{});
}

bool tf32() {
  const char* on = std::getenv("CSML_TF32");
  return on && std::string(on) == "1";
}

/// x to 10 bits of mantissa, ties away from zero, as the tensor cores' conversion rounds it.
float rounded_to_tf32(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if ((bits & 0x7F800000u) != 0x7F800000u) bits = (bits + 0x1000u) & ~0x1FFFu;  // infinities and NaN stay
  std::memcpy(&x, &bits, sizeof bits);
  return x;
}

/// An input's values in f32: the array itself, or a copy. A factor's f32 values are rounded to TF32 where CSML_TF32=1.
class Widened {
 public:
  explicit Widened(const ConstView& x, bool is_factor = true) : view_(x) {
    if (!x || (x.dtype == DType::f32 && !(is_factor && tf32()))) return;
    values_.resize(static_cast<size_t>(x.size()));
    if (x.dtype == DType::f32) {
      std::transform(x.as<float>(), x.as<float>() + x.size(), values_.begin(), rounded_to_tf32);
      view_.data = values_.data();
      return;
    }
    with_half(x.dtype, [&]<class T>(T) {
      const T* from = x.as<T>();
      for (size_t i = 0; i < values_.size(); ++i) values_[i] = from[i];
    });
    view_ = {values_.data(), x.shape, DType::f32};
  }
  operator ConstView() const { return view_; }

 private:
  std::vector<float> values_;
  ConstView view_;
};

/// Where an output is computed in f32: the array itself, or a stand-in with its old values that store() rounds.
class Wide {
 public:
  explicit Wide(const View& y) : y_(y), view_(y) {
    if (y.dtype == DType::f32) return;
    values_.resize(static_cast<size_t>(y.size()));
    with_half(y.dtype, [&]<class T>(T) {
      const T* from = y.as<T>();
      for (size_t i = 0; i < values_.size(); ++i) values_[i] = from[i];
    });
    view_ = {values_.data(), y.shape, DType::f32};
  }
  operator View() const { return view_; }
  void store() const {
    if (y_.dtype == DType::f32) return;
    with_half(y_.dtype, [&]<class T>(T) {
      T* to = y_.as<T>();
      for (size_t i = 0; i < values_.size(); ++i) to[i] = T(values_[i]);
    });
  }

 private:
  View y_;
  std::vector<float> values_;
  View view_;
};

}  // namespace

void conv2d(const Backend::Conv2d& args) {
  const Widened x(args.x), w(args.w);
  const Wide y(args.y);
  cpu::conv2d({.x = x, .w = w, .y = y, .stride = args.stride, .pad = args.pad});
  y.store();
}

void conv2d_grad_input(const Backend::Conv2dGradInput& args) {
  const Widened dy(args.dy), w(args.w);
  const Wide dx(args.dx);
  cpu::conv2d_grad_input({.dy = dy, .w = w, .dx = dx, .stride = args.stride, .pad = args.pad, .write = args.write});
  dx.store();
}

void conv2d_grad_weight(const Backend::Conv2dGradWeight& args) {
  const Widened dy(args.dy), x(args.x);
  Backend::Conv2dGradWeight wide = args;
  wide.dy = dy;
  wide.x = x;
  const Shape& filter = args.dw.shape;
  const bool pointwise = filter.rank() == 4 && filter[1] == 1 && filter[2] == 1 && args.stride == 1 && args.pad == 0;
  if (args.x.dtype == DType::f32 || pointwise) return cpu::conv2d_grad_weight(wide);
  std::vector<float> values(static_cast<size_t>(args.dw.size()));
  wide.dw = {values.data(), filter, DType::f32};
  wide.write = Write::overwrite;
  cpu::conv2d_grad_weight(wide);
  float* dw = args.dw.as<float>();
  with_half(args.x.dtype, [&]<class T>(T) {
    for (size_t i = 0; i < values.size(); ++i) {
      const float rounded = T(values[i]);
      dw[i] = args.write == Write::accumulate ? dw[i] + rounded : rounded;
    }
  });
}

void matmul(const Backend::Matmul& args) {
  const Widened a(args.a), b(args.b), bias(args.bias, false);
  const Wide c(args.c);
  Backend::Matmul wide = args;
  wide.a = a;
  wide.b = b;
  wide.bias = bias;
  wide.c = c;
  cpu::matmul(wide);
  c.store();
}

}  // namespace csml::test::library
