// The table's common parts and the elementwise family.
#include "tests/op_cases.h"

#include <algorithm>

#include "tests/reference.h"

namespace csml::test {

double OpCase::bytes() const {
  double total = 0;
  for (const Arg& arg : args) {
    const auto found = crossings.find(arg.name);
    const double times = found != crossings.end() ? found->second : arg.role == Role::in_out ? 2 : 1;
    total += static_cast<double>(arg.shape.size()) * static_cast<double>(size_of(arg.dtype)) * times;
  }
  return total;
}

Arrays OpCase::inputs(bool outliers) const {
  Arrays all;
  for (const Arg& arg : args) {
    if (arg.role == Role::output) continue;
    Random random = random_of(name() + "/" + arg.name);
    Array a(arg.shape, arg.dtype);
    arg.fill(a, random, outliers);
    round_to_dtype(a);
    all[arg.name] = std::move(a);
  }
  if (prepare) {
    prepare(all);
    for (auto& [arg, array] : all) round_to_dtype(array);
  }
  return all;
}

const std::vector<OpCase>& op_cases() {
  static const OpCases all = [] {
    OpCases cases;
    add_elementwise_cases(cases);
    add_conv_cases(cases);
    add_norm_cases(cases);
    add_sync_norm_cases(cases);
    add_contrast_cases(cases);
    add_commit_cases(cases);
    add_augment_cases(cases);
    add_view_cases(cases);
    return cases;
  }();
  return all;
}

const std::vector<std::string>& backend_calls() {
  static const std::vector<std::string> calls = {"fill",
                                                 "copy",
                                                 "axpy",
                                                 "relu",
                                                 "relu_grad",
                                                 "column_sum",
                                                 "gather",
                                                 "conv2d",
                                                 "conv2d_grad_input",
                                                 "conv2d_grad_weight",
                                                 "matmul",
                                                 "max_pool",
                                                 "max_pool_grad",
                                                 "global_avg_pool",
                                                 "global_avg_pool_grad",
                                                 "batch_norm",
                                                 "batch_norm_grad",
                                                 "batch_norm_inference",
                                                 "batch_norm_moments",
                                                 "batch_norm_merge",
                                                 "batch_norm_apply",
                                                 "batch_norm_grad_sums",
                                                 "batch_norm_grad_apply",
                                                 "l2_normalize",
                                                 "l2_normalize_grad",
                                                 "info_nce",
                                                 "cross_entropy",
                                                 "top_k",
                                                 "all_finite",
                                                 "sgd",
                                                 "lars",
                                                 "adamw",
                                                 "ema",
                                                 "update_loss_scale",
                                                 "ring_write",
                                                 "augment",
                                                 "cut_mix",
                                                 "row_dot",
                                                 "scale_rows",
                                                 "multi_positive",
                                                 "gather_window",
                                                 "gather_window_grad",
                                                 "best_window"};
  return calls;
}

Fill normal(double scale, double offset) {
  return [=](Array& a, Random& random, bool outliers) { fill_normal(a, random, outliers, scale, offset); };
}

Fill uniform(double low, double high) {
  return [=](Array& a, Random& random, bool) {
    for (double& x : a.v) x = low + (high - low) * random.uniform();
  };
}

Fill sixteenths() {
  return [](Array& a, Random& random, bool) {
    for (double& x : a.v) x = std::clamp(std::round(16.0 * random.normal()) / 16, -4.0, 4.0);
  };
}

Fill below(int64_t n) {
  return [=](Array& a, Random& random, bool) {
    for (double& x : a.v) x = random.below(static_cast<uint32_t>(n));
  };
}

Fill unit_rows() {
  return [](Array& a, Random& random, bool outliers) {
    fill_normal(a, random, outliers);
    if (a.size() > 0) a.v = reference::l2_normalize(a, 1e-12).y.v;
  };
}

Fill values(std::vector<double> v) {
  return [v = std::move(v)](Array& a, Random&, bool) {
    CHECK(a.v.size() == v.size(), "a case gives {} values for shape {}", v.size(), a.shape.text());
    a.v = v;
  };
}

Arg input(const std::string& name, Shape shape, Fill fill, DType dtype) {
  return {name, shape, dtype, Role::input, std::move(fill), {}};
}

Arg output(const std::string& name, Shape shape, Tolerance tolerance, DType dtype) {
  return {name, shape, dtype, Role::output, {}, tolerance};
}

Arg in_out(const std::string& name, Shape shape, Fill fill, Tolerance tolerance, DType dtype) {
  return {name, shape, dtype, Role::in_out, std::move(fill), tolerance};
}

Arg gradient(const std::string& name, Shape shape, Write write, Tolerance tolerance) {
  return write == Write::accumulate ? in_out(name, shape, normal(), tolerance) : output(name, shape, tolerance);
}

void put(const Arrays& in, Arrays& out, const std::string& name, Array value) {
  const auto old = in.find(name);
  out[name] = old == in.end() ? std::move(value) : reference::add(old->second, value);
}

void drop_gradient_at_kinks(Arrays& in, const Array& y) {
  for (int64_t i = 0; i < y.size(); ++i)
    if (std::abs(y[i]) < 1e-4)
      for (const char* name : {"dy", "dy2"})
        if (in.count(name)) in[name][i] = 0;
}

void add_elementwise_cases(OpCases& cases) {
  // Around one register, one thread's share, and no element at all.
  const Shape shapes[] = {{1}, {7}, {0}, {3, 5, 7}, {2, 3, 5, 17}, {}, {70001}};
  for (const Shape& s : shapes) {
    const double n = static_cast<double>(s.size());
    cases.push_back({.op = "fill",
                     .detail = s.text(),
                     .args = {output("y", s, kExact)},
                     .call = [](Backend& be, const Bound& b) { be.fill({.y = b["y"], .value = -2.5f}); },
                     .reference =
                         [s](const Arrays&, Arrays& out) {
                           out["y"] = Array(s);
                           for (double& y : out["y"].v) y = -2.5;
                         }});
    cases.push_back({.op = "relu",
                     .detail = s.text(),
                     .args = {input("x", s), output("y", s, kExact)},
                     .call = [](Backend& be, const Bound& b) { be.relu({.x = b["x"], .y = b["y"]}); },
                     .reference = [](const Arrays& in, Arrays& out) { out["y"] = reference::relu(in.at("x")); },
                     .flops = n});
    for (const DType type : {DType::f32, DType::u8, DType::i64})
      cases.push_back({.op = "copy",
                       .detail = cat("{} {}", s.text(), name_of(type)),
                       .args = {input("x", s, below(200), type), output("y", s, kExact, type)},
                       .call = [](Backend& be, const Bound& b) { be.copy({.x = b["x"], .y = b["y"]}); },
                       .reference = [](const Arrays& in, Arrays& out) { out["y"] = in.at("x"); }});
    for (const Write write : kWrites) {
      for (const bool scaled : {false, true}) {
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
                 .flops = 2 * n};
        if (scaled) c.args.push_back(input("scale", {1}));
        cases.push_back(c);
      }
      cases.push_back(
          {.op = "relu_grad",
           .detail = s.text() + text_of(write),
           .args = {input("dy", s), input("y", s), gradient("dx", s, write)},
           .call = [write](
                       Backend& be,
                       const Bound& b) { be.relu_grad({.dy = b["dy"], .y = b["y"], .dx = b["dx"], .write = write}); },
           .reference = [](const Arrays& in,
                           Arrays& out) { put(in, out, "dx", reference::relu_grad(in.at("dy"), in.at("y"))); },
           .prepare = [](Arrays& in) { in["y"] = reference::relu(in["y"]); },
           .flops = n});
    }
  }
  const Shape matrices[] = {{1, 1}, {5, 3}, {1, 130}, {4097, 3}, {2, 7, 5, 17}, {0, 6}, {33, 1000}, {9}};
  for (const Shape& s : matrices)
    for (const Write write : kWrites)
      cases.push_back(
          {.op = "column_sum",
           .detail = s.text() + text_of(write),
           .args = {input("x", s), gradient("y", {s[s.rank() - 1]}, write)},
           .call = [write](Backend& be, const Bound& b) { be.column_sum({.x = b["x"], .y = b["y"], .write = write}); },
           .reference = [](const Arrays& in, Arrays& out) { put(in, out, "y", reference::column_sum(in.at("x"))); },
           .flops = static_cast<double>(s.size())});
  struct Rows {
    Shape x;
    int64_t count;
    DType type;
  };
  const Rows gathers[] = {{{5, 3}, 9, DType::f32},      {{1, 4}, 3, DType::f32}, {{6, 4, 5, 3}, 4, DType::u8},
                          {{7}, 7, DType::i64},         {{5, 3}, 0, DType::f32}, {{300, 129}, 500, DType::f32},
                          {{4, 2, 3, 5}, 4, DType::f32}};
  for (const Rows& g : gathers)
    cases.push_back(
        {.op = "gather",
         .detail = cat("{} of {} {}", g.count, g.x.text(), name_of(g.type)),
         .args = {input("x", g.x, below(200), g.type), input("index", {g.count}, below(g.x[0]), DType::i32),
                  output("y", g.x.with_rows(g.count), kExact, g.type)},
         .call = [](Backend& be, const Bound& b) { be.gather({.x = b["x"], .index = b["index"], .y = b["y"]}); },
         .reference = [](const Arrays& in, Arrays& out) { out["y"] = reference::gather(in.at("x"), in.at("index")); }});
}

}  // namespace csml::test
