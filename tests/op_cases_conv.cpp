// Convolution, matrix product and pooling in the table.
#include "tests/op_cases.h"
#include "tests/reference.h"

namespace csml::test {

namespace {

struct Conv {
  Shape x, w;
  int stride = 1, pad = 0;

  Shape y() const { return {x[0], (x[1] + 2 * pad - w[1]) / stride + 1, (x[2] + 2 * pad - w[2]) / stride + 1, w[0]}; }
  std::string text() const { return cat("{} by {} stride {} pad {}", x.text(), w.text(), stride, pad); }
  double flops() const { return 2.0 * static_cast<double>(y().size() * w.row_size()); }
};

OpCase forward_case(const Conv& v) {
  return {.op = "conv2d",
          .detail = v.text(),
          .args = {input("x", v.x), input("w", v.w), output("y", v.y())},
          .call =
              [v](Backend& be, const Bound& b) {
                be.conv2d({.x = b["x"], .w = b["w"], .y = b["y"], .stride = v.stride, .pad = v.pad});
              },
          .reference = [v](const Arrays& in,
                           Arrays& out) { out["y"] = reference::conv2d(in.at("x"), in.at("w"), v.stride, v.pad); },
          .flops = v.flops()};
}

OpCase grad_input_case(const Conv& v, Write write) {
  return {.op = "conv2d_grad_input",
          .detail = v.text() + text_of(write),
          .args = {input("dy", v.y()), input("w", v.w), gradient("dx", v.x, write)},
          .call =
              [v, write](Backend& be, const Bound& b) {
                be.conv2d_grad_input(
                    {.dy = b["dy"], .w = b["w"], .dx = b["dx"], .stride = v.stride, .pad = v.pad, .write = write});
              },
          .reference =
              [v](const Arrays& in, Arrays& out) {
                put(in, out, "dx", reference::conv2d_grad_input(in.at("dy"), in.at("w"), v.x, v.stride, v.pad));
              },
          .flops = v.flops()};
}

OpCase grad_weight_case(const Conv& v, Write write) {
  return {.op = "conv2d_grad_weight",
          .detail = v.text() + text_of(write),
          .args = {input("dy", v.y()), input("x", v.x), gradient("dw", v.w, write)},
          .call =
              [v, write](Backend& be, const Bound& b) {
                be.conv2d_grad_weight(
                    {.dy = b["dy"], .x = b["x"], .dw = b["dw"], .stride = v.stride, .pad = v.pad, .write = write});
              },
          .reference =
              [v](const Arrays& in, Arrays& out) {
                put(in, out, "dw", reference::conv2d_grad_weight(in.at("dy"), in.at("x"), v.w, v.stride, v.pad));
              },
          .flops = v.flops()};
}

struct Product {
  int64_t m, n, k;
  bool ta = false, tb = false, bias = false;
  Write write = Write::overwrite;
};

OpCase matmul_case(const Product& v) {
  const Shape a = v.ta ? Shape{v.k, v.m} : Shape{v.m, v.k}, b = v.tb ? Shape{v.n, v.k} : Shape{v.k, v.n};
  OpCase c{.op = "matmul",
           .detail = cat("{}x{}x{}{}{}{}{}", v.m, v.n, v.k, v.ta ? " a^T" : "", v.tb ? " b^T" : "",
                         v.bias ? " bias" : "", text_of(v.write)),
           .args = {input("a", a), input("b", b), gradient("c", {v.m, v.n}, v.write)},
           .call =
               [v](Backend& be, const Bound& bound) {
                 be.matmul({.a = bound["a"],
                            .b = bound["b"],
                            .bias = bound["bias"],
                            .c = bound["c"],
                            .transpose_a = v.ta,
                            .transpose_b = v.tb,
                            .write = v.write});
               },
           .reference =
               [v](const Arrays& in, Arrays& out) {
                 const Array bias = v.bias ? in.at("bias") : Array();
                 put(in, out, "c", reference::matmul(in.at("a"), in.at("b"), bias, v.ta, v.tb));
               },
           .flops = 2.0 * static_cast<double>(v.m * v.n * v.k)};
  if (v.bias) c.args.push_back(input("bias", {v.n}));
  return c;
}

struct Pool {
  Shape x;
  int window = 3, stride = 2, pad = 1;

  Shape y() const {
    return {x[0], (x[1] + 2 * pad - window) / stride + 1, (x[2] + 2 * pad - window) / stride + 1, x[3]};
  }
  std::string text() const { return cat("{} window {} stride {} pad {}", x.text(), window, stride, pad); }
};

OpCase pool_case(const Pool& v, Fill fill, const std::string& what) {
  return {.op = "max_pool",
          .detail = v.text() + what,
          .args = {input("x", v.x, std::move(fill)), output("y", v.y(), kExact),
                   output("argmax", v.y(), kExact, DType::u8)},
          .call =
              [v](Backend& be, const Bound& b) {
                be.max_pool({.x = b["x"],
                             .y = b["y"],
                             .argmax = b["argmax"],
                             .window = v.window,
                             .stride = v.stride,
                             .pad = v.pad});
              },
          .reference =
              [v](const Arrays& in, Arrays& out) {
                const reference::MaxPool r = reference::max_pool(in.at("x"), v.window, v.stride, v.pad);
                out["y"] = r.y;
                out["argmax"] = r.argmax;
              },
          .flops = static_cast<double>(v.y().size() * v.window * v.window),
          .same_for_any_threads = true};
}

OpCase pool_grad_case(const Pool& v, Write write) {
  return {.op = "max_pool_grad",
          .detail = v.text() + text_of(write),
          .args = {input("dy", v.y()), input("argmax", v.y(), below(1), DType::u8), gradient("dx", v.x, write)},
          .call =
              [v, write](Backend& be, const Bound& b) {
                be.max_pool_grad({.dy = b["dy"],
                                  .argmax = b["argmax"],
                                  .dx = b["dx"],
                                  .window = v.window,
                                  .stride = v.stride,
                                  .pad = v.pad,
                                  .write = write});
              },
          .reference =
              [v](const Arrays& in, Arrays& out) {
                put(in, out, "dx",
                    reference::max_pool_grad(in.at("dy"), in.at("argmax"), v.x, v.window, v.stride, v.pad));
              },
          .prepare =
              [v](Arrays& in) {
                Array x(v.x);
                Random random = random_of("max_pool " + v.text());
                fill_normal(x, random, false);
                in["argmax"] = reference::max_pool(x, v.window, v.stride, v.pad).argmax;
              },
          .flops = static_cast<double>(v.y().size()),
          .same_for_any_threads = true};
}

OpCase average_case(const Shape& s) {
  return {.op = "global_avg_pool",
          .detail = s.text(),
          .args = {input("x", s), output("y", {s[0], s[3]})},
          .call = [](Backend& be, const Bound& b) { be.global_avg_pool({.x = b["x"], .y = b["y"]}); },
          .reference = [](const Arrays& in, Arrays& out) { out["y"] = reference::global_avg_pool(in.at("x")); },
          .flops = static_cast<double>(s.size())};
}

OpCase average_grad_case(const Shape& s, Write write) {
  return {.op = "global_avg_pool_grad",
          .detail = s.text() + text_of(write),
          .args = {input("dy", {s[0], s[3]}), gradient("dx", s, write)},
          .call = [write](Backend& be,
                          const Bound& b) { be.global_avg_pool_grad({.dy = b["dy"], .dx = b["dx"], .write = write}); },
          .reference = [s](const Arrays& in,
                           Arrays& out) { put(in, out, "dx", reference::global_avg_pool_grad(in.at("dy"), s)); },
          .flops = static_cast<double>(s.size())};
}

}  // namespace

void add_conv_cases(OpCases& cases) {
  const Conv convs[] = {
      {{2, 23, 21, 3}, {10, 7, 7, 3}, 2, 3},    // ImageNet stem, odd image
      {{1, 32, 32, 3}, {16, 3, 3, 3}, 1, 1},    // CIFAR stem
      {{2, 28, 28, 1}, {8, 3, 3, 1}, 1, 1},     // one channel
      {{1, 9, 9, 1}, {1, 7, 7, 1}, 2, 3},       // one channel, one filter
      {{3, 7, 7, 16}, {32, 3, 3, 16}, 1, 1},    // as blocked layouts like it
      {{2, 9, 11, 13}, {7, 3, 3, 13}, 1, 1},    // nothing divides
      {{2, 9, 8, 24}, {17, 3, 3, 24}, 2, 1},    // stride 2, channels a multiple of 8 only
      {{2, 8, 8, 20}, {33, 1, 1, 20}, 1, 0},    // a plain matrix product
      {{3, 7, 9, 16}, {24, 1, 1, 16}, 2, 0},    // projection shortcut: skips pixels
      {{2, 8, 8, 32}, {16, 1, 1, 32}, 2, 0},    // the same, even image: the last pixels belong to no window
      {{1, 3, 3, 5}, {6, 3, 3, 5}, 1, 0},       // the window is the image
      {{1, 1, 1, 8}, {4, 3, 3, 8}, 1, 1},       // only padding around one pixel
      {{1, 2, 2, 64}, {64, 3, 3, 64}, 2, 1},    // last stage of a small image
      {{5, 1, 1, 19}, {3, 1, 1, 19}, 1, 0},     // one pixel
      {{2, 10, 10, 4}, {6, 3, 3, 4}, 2, 0},     // no padding, a rest of one column
      {{1, 6, 5, 130}, {130, 1, 1, 130}, 1, 0}  // more than one block of channels and a rest
  };
  for (const Conv& v : convs) {
    cases.push_back(forward_case(v));
    for (const Write write : kWrites) {
      cases.push_back(grad_input_case(v, write));
      cases.push_back(grad_weight_case(v, write));
    }
  }

  const Product products[] = {{1, 1, 1},   {5, 7, 3},   {33, 17, 65}, {1, 128, 100},
                              {64, 1, 64}, {50, 10, 1}, {16, 48, 256}};
  for (Product v : products)
    for (int flags = 0; flags < 16; ++flags) {
      v.ta = flags & 1, v.tb = flags & 2, v.bias = flags & 4;
      v.write = flags & 8 ? Write::accumulate : Write::overwrite;
      cases.push_back(matmul_case(v));
    }
  cases.push_back(matmul_case({.m = 4, .n = 5, .k = 0}));  // an empty sum
  cases.push_back(matmul_case({.m = 4, .n = 5, .k = 0, .bias = true, .write = Write::accumulate}));
  cases.push_back(matmul_case({.m = 0, .n = 5, .k = 3}));
  cases.push_back(matmul_case({.m = 3, .n = 3, .k = 20011, .ta = true}));  // a weight gradient over many rows

  const Pool pools[] = {{{2, 12, 12, 16}}, {{1, 11, 7, 5}},         {{3, 4, 4, 130}},        {{1, 1, 1, 3}},
                        {{1, 2, 3, 1}},    {{2, 6, 6, 3}, 2, 2, 0}, {{1, 9, 9, 4}, 5, 1, 2}, {{2, 7, 7, 8}, 1, 2, 0}};
  for (const Pool& v : pools) {
    cases.push_back(pool_case(v, normal(1, -30), ""));  // all negative: padding must not win
    cases.push_back(pool_case(v, below(3), " ties"));
    for (const Write write : kWrites) cases.push_back(pool_grad_case(v, write));
  }
  cases.push_back(pool_grad_case({{1, 130, 130, 64}}, Write::overwrite));  // large enough to bypass the caches
  for (const Shape& s : {Shape{2, 7, 7, 33}, Shape{1, 1, 1, 1}, Shape{3, 5, 2, 130}, Shape{2, 40, 41, 3}}) {
    cases.push_back(average_case(s));
    for (const Write write : kWrites) cases.push_back(average_grad_case(s, write));
  }
}

std::vector<OpCase> bench_cases(bool cifar, int64_t batch) {
  OpCases cases;
  std::vector<Conv> convs;
  if (cifar) {
    convs.push_back({{batch, 32, 32, 3}, {64, 3, 3, 3}, 1, 1});
    for (int64_t width = 64, side = 32; width <= 512; width *= 2, side /= 2) {
      if (width > 64) convs.push_back({{batch, side * 2, side * 2, width / 2}, {width, 3, 3, width / 2}, 2, 1});
      convs.push_back({{batch, side, side, width}, {width, 3, 3, width}, 1, 1});
    }
  } else {
    convs.push_back({{batch, 224, 224, 3}, {64, 7, 7, 3}, 2, 3});
    for (int64_t width = 64, side = 56; width <= 512; width *= 2, side /= 2) {
      if (width > 64) convs.push_back({{batch, side * 2, side * 2, width}, {width, 3, 3, width}, 2, 1});
      convs.push_back({{batch, side, side, 4 * width}, {width, 1, 1, 4 * width}, 1, 0});
      convs.push_back({{batch, side, side, width}, {width, 3, 3, width}, 1, 1});
      convs.push_back({{batch, side, side, width}, {4 * width, 1, 1, width}, 1, 0});
    }
    cases.push_back(pool_case({{batch, 112, 112, 64}}, normal(), ""));
    cases.push_back(pool_grad_case({{batch, 112, 112, 64}}, Write::overwrite));
  }
  bool stem = true;
  for (const Conv& v : convs) {
    cases.push_back(forward_case(v));
    if (!stem) cases.push_back(grad_input_case(v, Write::overwrite));
    cases.push_back(grad_weight_case(v, Write::overwrite));
    stem = false;
  }
  const int64_t width = cifar ? 512 : 2048;
  const Shape last{batch, cifar ? 4 : 7, cifar ? 4 : 7, width};
  cases.push_back(average_case(last));
  cases.push_back(average_grad_case(last, Write::overwrite));
  cases.push_back(matmul_case({.m = batch, .n = width, .k = width, .tb = true, .bias = true}));
  add_norm_bench_cases(cases, cifar, batch);
  add_sync_norm_bench_cases(cases, cifar, batch);
  add_elementwise_bench_cases(cases, cifar, batch);
  add_contrast_bench_cases(cases, cifar, batch);
  add_augment_bench_cases(cases, cifar, batch);
  add_view_bench_cases(cases, cifar, batch);
  add_commit_bench_cases(cases, cifar, batch);
  for (OpCase& c : cases) c.reference = nullptr;
  return cases;
}

}  // namespace csml::test
