// Own pooling kernels beside oneDNN's on the same data: milliseconds, one thread, medians of alternating runs.
//   cmake --build build/cpu --target pool_onednn && OMP_NUM_THREADS=1 build/cpu/pool_onednn [repetitions]
#include <fmt/core.h>
#include <time.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <dnnl.hpp>
#include <unordered_map>
#include <vector>

#include "kernels/cpu/kernels.h"

using namespace csml;
namespace {

using dnnl::memory, dnnl::algorithm, dnnl::prop_kind;
using Floats = std::vector<float>;

/// Seconds of this process's processor time.
double processor_seconds() {
  timespec t{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

double median(std::vector<double> v) {
  std::nth_element(v.begin(), v.begin() + static_cast<ptrdiff_t>(v.size() / 2), v.end());
  return v[v.size() / 2];
}

template <class Own, class Other>
void race(const char* what, int repetitions, Own own, Other other) {
  std::vector<double> a, b;
  for (int i = -2; i < repetitions; ++i) {  // the first two warm up
    const double start = processor_seconds();
    own();
    const double middle = processor_seconds();
    other();
    if (i < 0) continue;
    a.push_back(1e3 * (middle - start));
    b.push_back(1e3 * (processor_seconds() - middle));
  }
  fmt::print("  {:9} own {:7.3f} ms   oneDNN {:7.3f} ms   own/oneDNN {:.2f}\n", what, median(a), median(b),
             median(a) / median(b));
}

double largest_difference(const Floats& a, const Floats& b) {
  double d = 0;
  for (size_t i = 0; i < a.size(); ++i) d = std::max(d, std::abs(double{a[i]} - b[i]));
  return d;
}

/// Max pooling (3 x 3, stride 2, pad 1) of x [n, h, h, c], or its global mean.
void compare(int64_t n, int64_t h, int64_t c, bool global, int repetitions) {
  const int64_t p = global ? 1 : (h + 2 - 3) / 2 + 1, window = global ? h : 3, stride = global ? 1 : 2, pad = !global;
  const Shape in{n, h, h, c}, out{n, p, p, c}, pooled{n, c};
  const auto size = [](const Shape& s) { return static_cast<size_t>(s.size()); };
  Floats x(size(in)), dy(size(out)), y(size(out)), y2(size(out)), dx(size(in)), dx2(size(in));
  std::vector<uint8_t> argmax(size(out));
  for (float& v : x) v = static_cast<float>(std::rand()) / static_cast<float>(RAND_MAX);
  for (float& v : dy) v = static_cast<float>(std::rand()) / static_cast<float>(RAND_MAX);

  const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  dnnl::stream stream(engine);
  const memory::desc in_desc({n, c, h, h}, memory::data_type::f32, memory::format_tag::nhwc);
  const memory::desc out_desc({n, c, p, p}, memory::data_type::f32, memory::format_tag::nhwc);
  const auto kind = global ? algorithm::pooling_avg_exclude_padding : algorithm::pooling_max;
  const memory::dims strides{stride, stride}, kernel{window, window}, pads{pad, pad};
  const dnnl::pooling_forward::primitive_desc forward_desc(
      {prop_kind::forward_training, kind, in_desc, out_desc, strides, kernel, pads, pads}, engine);
  const dnnl::pooling_backward::primitive_desc backward_desc({kind, in_desc, out_desc, strides, kernel, pads, pads},
                                                             engine, forward_desc);
  const dnnl::pooling_forward forward(forward_desc);
  const dnnl::pooling_backward backward(backward_desc);
  const memory mx(in_desc, engine, x.data()), my(out_desc, engine, y2.data()), mdy(out_desc, engine, dy.data()),
      mdx(in_desc, engine, dx2.data());
  const memory workspace = global ? memory() : memory(forward_desc.workspace_desc(), engine);
  std::unordered_map<int, memory> to_y{{DNNL_ARG_SRC, mx}, {DNNL_ARG_DST, my}};
  std::unordered_map<int, memory> to_dx{{DNNL_ARG_DIFF_DST, mdy}, {DNNL_ARG_DIFF_SRC, mdx}};
  if (!global) to_y.emplace(DNNL_ARG_WORKSPACE, workspace), to_dx.emplace(DNNL_ARG_WORKSPACE, workspace);

  fmt::print("{} {}: oneDNN uses {} and {}\n", global ? "global mean of" : "max pool 3x3/2 of", in.text(),
             forward_desc.impl_info_str(), backward_desc.impl_info_str());
  const ConstView vx{x.data(), in}, vdy{dy.data(), global ? pooled : out};
  const View vy{y.data(), global ? pooled : out}, vdx{dx.data(), in}, index{argmax.data(), out, DType::u8};
  race(
      "forward", repetitions,
      [&] { global ? cpu::global_avg_pool({.x = vx, .y = vy}) : cpu::max_pool({.x = vx, .y = vy, .argmax = index}); },
      [&] { forward.execute(stream, to_y), stream.wait(); });
  race(
      "backward", repetitions,
      [&] {
        global ? cpu::global_avg_pool_grad({.dy = vdy, .dx = vdx})
               : cpu::max_pool_grad({.dy = vdy, .argmax = index, .dx = vdx});
      },
      [&] { backward.execute(stream, to_dx), stream.wait(); });
  fmt::print("  largest difference: y {:.1e}, dx {:.1e}\n", largest_difference(y, y2), largest_difference(dx, dx2));
}

}  // namespace

int main(int argc, char** argv) {
  const int repetitions = argc > 1 ? std::atoi(argv[1]) : 41;
  compare(16, 112, 64, false, repetitions);
  compare(64, 32, 64, false, repetitions);
  compare(64, 7, 2048, true, repetitions);
}
