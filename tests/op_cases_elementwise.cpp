// Elementwise calls, sums of columns and gathered rows in the table.
#include "tests/op_cases.h"
#include "tests/reference.h"

namespace csml::test {

namespace {

OpCase fill_case(const Shape& s) {
  return {.op = "fill",
          .detail = s.text(),
          .args = {output("y", s, kExact)},
          .call = [](Backend& be, const Bound& b) { be.fill({.y = b["y"], .value = -2.5f}); },
          .reference =
              [s](const Arrays&, Arrays& out) {
                out["y"] = Array(s);
                for (double& y : out["y"].v) y = -2.5;
              }};
}

OpCase relu_case(const Shape& s) {
  return {.op = "relu",
          .detail = s.text(),
          .args = {input("x", s), output("y", s, kExact)},
          .call = [](Backend& be, const Bound& b) { be.relu({.x = b["x"], .y = b["y"]}); },
          .reference = [](const Arrays& in, Arrays& out) { out["y"] = reference::relu(in.at("x")); },
          .flops = static_cast<double>(s.size())};
}

OpCase relu_grad_case(const Shape& s, Write write) {
  return {
      .op = "relu_grad",
      .detail = s.text() + text_of(write),
      .args = {input("dy", s), input("y", s), gradient("dx", s, write)},
      .call = [write](Backend& be,
                      const Bound& b) { be.relu_grad({.dy = b["dy"], .y = b["y"], .dx = b["dx"], .write = write}); },
      .reference = [](const Arrays& in,
                      Arrays& out) { put(in, out, "dx", reference::relu_grad(in.at("dy"), in.at("y"))); },
      .prepare = [](Arrays& in) { in["y"] = reference::relu(in["y"]); },
      .flops = static_cast<double>(s.size())};
}

OpCase copy_case(const Shape& s, DType type) {
  return {.op = "copy",
          .detail = cat("{} {}", s.text(), name_of(type)),
          .args = {input("x", s, below(200), type), output("y", s, kExact, type)},
          .call = [](Backend& be, const Bound& b) { be.copy({.x = b["x"], .y = b["y"]}); },
          .reference = [](const Arrays& in, Arrays& out) { out["y"] = in.at("x"); }};
}

OpCase axpy_case(const Shape& s, bool scaled, Write write) {
  OpCase c{.op = "axpy",
           .detail = cat("{}{}{}", s.text(), scaled ? " scale" : "", text_of(write)),
           .args = {input("x", s), gradient("y", s, write)},
           .call =
               [write](Backend& be, const Bound& b) {
                 be.axpy({.x = b["x"], .y = b["y"], .alpha = -0.75f, .scale = b["scale"], .write = write});
               },
           .reference =
               [scaled](const Arrays& in, Arrays& out) {
                 Array y = in.at("x");
                 for (double& v : y.v) v *= -0.75 * (scaled ? in.at("scale")[0] : 1);
                 put(in, out, "y", y);
               },
           .flops = 2 * static_cast<double>(s.size())};
  if (scaled) c.args.push_back(input("scale", {1}));
  return c;
}

OpCase column_sum_case(const Shape& s, Write write) {
  return {.op = "column_sum",
          .detail = s.text() + text_of(write),
          .args = {input("x", s), gradient("y", {s[s.rank() - 1]}, write)},
          .call = [write](Backend& be, const Bound& b) { be.column_sum({.x = b["x"], .y = b["y"], .write = write}); },
          .reference = [](const Arrays& in, Arrays& out) { put(in, out, "y", reference::column_sum(in.at("x"))); },
          .flops = static_cast<double>(s.size())};
}

OpCase gather_case(const Shape& x, int64_t count, DType type) {
  return {.op = "gather",
          .detail = cat("{} of {} {}", count, x.text(), name_of(type)),
          .args = {input("x", x, below(200), type), input("index", {count}, below(x[0]), DType::i32),
                   output("y", x.with_rows(count), kExact, type)},
          .call = [](Backend& be, const Bound& b) { be.gather({.x = b["x"], .index = b["index"], .y = b["y"]}); },
          .reference = [](const Arrays& in, Arrays& out) { out["y"] = reference::gather(in.at("x"), in.at("index")); }};
}

}  // namespace

void add_elementwise_cases(OpCases& cases) {
  // Around one register, one thread's share, and no element at all.
  for (const Shape& s : {Shape{1}, Shape{7}, Shape{0}, Shape{3, 5, 7}, Shape{2, 3, 5, 17}, Shape{}, Shape{70001}}) {
    cases.push_back(fill_case(s));
    cases.push_back(relu_case(s));
    for (const DType type : {DType::f32, DType::u8, DType::i64}) cases.push_back(copy_case(s, type));
    for (const Write write : kWrites) {
      for (const bool scaled : {false, true}) cases.push_back(axpy_case(s, scaled, write));
      cases.push_back(relu_grad_case(s, write));
    }
  }
  const Shape matrices[] = {{1, 1}, {5, 3}, {1, 130}, {4097, 3}, {2, 7, 5, 17}, {0, 6}, {33, 1000}, {9}};
  for (const Shape& s : matrices)
    for (const Write write : kWrites) cases.push_back(column_sum_case(s, write));
  cases.push_back(gather_case({5, 3}, 9, DType::f32));
  cases.push_back(gather_case({1, 4}, 3, DType::f32));
  cases.push_back(gather_case({6, 4, 5, 3}, 4, DType::u8));
  cases.push_back(gather_case({7}, 7, DType::i64));
  cases.push_back(gather_case({5, 3}, 0, DType::f32));
  cases.push_back(gather_case({300, 129}, 500, DType::f32));
  cases.push_back(gather_case({4, 2, 3, 5}, 4, DType::f32));
}

void add_elementwise_bench_cases(OpCases& cases, bool cifar, int64_t batch) {
  const Shape map = cifar ? Shape{batch, 32, 32, 64} : Shape{batch, 56, 56, 256};  // the largest that a block hands on
  cases.push_back(fill_case(map));
  cases.push_back(copy_case(map, DType::f32));
  cases.back().detail = map.text();  // in_type() may give it another type
  cases.push_back(axpy_case(map, false, Write::overwrite));
  cases.push_back(axpy_case(map, true, Write::accumulate));
  cases.push_back(relu_case(map));
  cases.push_back(relu_grad_case(map, Write::overwrite));
  cases.push_back(column_sum_case({batch, 128}, Write::overwrite));  // the gradient of a head's bias
  const Shape images = cifar ? Shape{batch, 32, 32, 3} : Shape{batch, 224, 224, 3};
  cases.push_back(gather_case(images, batch, DType::f32));  // those of the keys, in another order
  cases.back().detail = cat("{} of {}", batch, images.text());
  cases.back().args[1].fill = [](Array& a, Random& random, bool) {
    for (int64_t i = 0; i < a.size(); ++i) {  // every row once
      const auto j = static_cast<int64_t>(random.below(static_cast<uint32_t>(i + 1)));
      a[i] = a[j];
      a[j] = static_cast<double>(i);
    }
  };
}

}  // namespace csml::test
