// Batch norm and row normalisation in the table.
#include "tests/op_cases.h"
#include "tests/reference.h"

namespace csml::test {

namespace {

struct Norm {
  Shape x;
  int groups = 1;
  bool relu = false, residual = false;

  int64_t channels() const { return x[x.rank() - 1]; }
  std::string text() const {
    return cat("{} groups {}{}{}", x.text(), groups, residual ? " residual" : "", relu ? " relu" : "");
  }
};

constexpr float kEps = 1e-5f;

OpCase forward_case(const Norm& v, bool batch_statistics, Fill x = normal(), const std::string& what = "",
                    Tolerance tolerance = {}) {
  const Shape c{v.channels()}, g{v.groups, v.channels()};
  OpCase test{.op = "batch_norm",
              .detail = v.text() + what,
              .args = {input("x", v.x, std::move(x)), input("gamma", c, normal(0.5, 1)), input("beta", c),
                       output("y", v.x, tolerance), output("mean", g), output("rstd", g, tolerance)},
              .call =
                  [v](Backend& be, const Bound& b) {
                    be.batch_norm({.x = b["x"],
                                   .gamma = b["gamma"],
                                   .beta = b["beta"],
                                   .residual = b["residual"],
                                   .y = b["y"],
                                   .mean = b["mean"],
                                   .rstd = b["rstd"],
                                   .batch_mean = b["batch_mean"],
                                   .batch_var = b["batch_var"],
                                   .groups = v.groups,
                                   .eps = kEps,
                                   .relu = v.relu});
                  },
              .reference =
                  [v](const Arrays& in, Arrays& out) {
                    const reference::BatchNorm r =
                        reference::batch_norm(in.at("x"), in.at("gamma"), in.at("beta"),
                                              v.residual ? in.at("residual") : Array(), v.groups, kEps, v.relu);
                    out = {{"y", r.y},
                           {"mean", r.mean},
                           {"rstd", r.rstd},
                           {"batch_mean", r.batch_mean},
                           {"batch_var", r.batch_var}};
                  },
              .flops = 8.0 * static_cast<double>(v.x.size()),
              .same_for_any_threads = true};
  if (v.residual) test.args.push_back(input("residual", v.x));
  if (batch_statistics) {
    test.args.push_back(output("batch_mean", c));
    test.args.push_back(output("batch_var", c, tolerance));
  }
  return test;
}

/// wanted: any of "x r g b" (dx, dresidual, dgamma, dbeta); a capital letter accumulates.
OpCase grad_case(const Norm& v, bool two_gradients, const std::string& wanted, Fill x = normal()) {
  const Shape c{v.channels()}, g{v.groups, v.channels()};
  const auto write_of = [&](char letter) {
    return wanted.find(static_cast<char>(letter - 32)) == std::string::npos ? Write::overwrite : Write::accumulate;
  };
  const Write wx = write_of('x'), wr = write_of('r'), wg = write_of('g'), wb = write_of('b');
  OpCase test{.op = "batch_norm_grad",
              .detail = cat("{}{} wants {}", v.text(), two_gradients ? " dy2" : "", wanted),
              .args = {input("dy", v.x), input("x", v.x, std::move(x)), input("gamma", c, normal(0.5, 1)),
                       input("beta", c), input("mean", g), input("rstd", g)},
              .call =
                  [=](Backend& be, const Bound& b) {
                    be.batch_norm_grad({.dy = b["dy"],
                                        .dy2 = b["dy2"],
                                        .x = b["x"],
                                        .y = b["y"],
                                        .gamma = b["gamma"],
                                        .beta = b["beta"],
                                        .mean = b["mean"],
                                        .rstd = b["rstd"],
                                        .dx = b["dx"],
                                        .dresidual = b["dresidual"],
                                        .dgamma = b["dgamma"],
                                        .dbeta = b["dbeta"],
                                        .groups = v.groups,
                                        .relu = v.relu,
                                        .has_residual = v.residual,
                                        .dx_write = wx,
                                        .dresidual_write = wr,
                                        .dgamma_write = wg,
                                        .dbeta_write = wb});
                  },
              .reference =
                  [=](const Arrays& in, Arrays& out) {
                    const reference::BatchNormGrad r = reference::batch_norm_grad(
                        in.at("dy"), two_gradients ? in.at("dy2") : Array(), in.at("x"), v.relu ? in.at("y") : Array(),
                        in.at("gamma"), in.at("mean"), in.at("rstd"), v.groups, v.relu);
                    put(in, out, "dx", r.dx);
                    put(in, out, "dresidual", r.dresidual);
                    put(in, out, "dgamma", r.dgamma);
                    put(in, out, "dbeta", r.dbeta);
                  },
              .prepare =
                  [=](Arrays& in) {
                    Array residual;
                    if (v.residual) {
                      residual = Array(v.x);
                      Random random = random_of("residual " + v.text());
                      fill_normal(residual, random, false);
                    }
                    reference::BatchNorm r =
                        reference::batch_norm(in["x"], in["gamma"], in["beta"], residual, v.groups, kEps, false);
                    in["mean"] = r.mean;
                    in["rstd"] = r.rstd;
                    if (!v.relu) return;
                    drop_gradient_at_kinks(in, r.y);
                    in["y"].v = reference::relu(r.y).v;  // in the type it has
                  },
              .flops = 12.0 * static_cast<double>(v.x.size()),
              .same_for_any_threads = true};
  if (two_gradients) test.args.push_back(input("dy2", v.x));
  if (v.relu) test.args.push_back(input("y", v.x));
  const auto want = [&](char letter, const char* name, Shape shape, Write write, Tolerance tolerance = {}) {
    if (write == Write::accumulate || wanted.find(letter) != std::string::npos)
      test.args.push_back(gradient(name, shape, write, tolerance));
  };
  const bool pairs = v.x.size() / v.channels() / v.groups == 2;
  want('x', "dx", v.x, wx,
       pairs ? Tolerance{4e-4, 2e-2,
                         "two rows per group: the terms of dx cancel but for eps; f16 has few bits left there"}
             : Tolerance{});
  want('r', "dresidual", v.x, wr);
  want('g', "dgamma", c, wg);
  want('b', "dbeta", c, wb);
  return test;
}

OpCase inference_case(const Norm& v) {
  const Shape c{v.channels()};
  OpCase test{.op = "batch_norm_inference",
              .detail = v.text(),
              .args = {input("x", v.x), input("gamma", c, normal(0.5, 1)), input("beta", c), input("mean", c),
                       input("var", c, uniform(0.05, 4)), output("y", v.x)},
              .call =
                  [v](Backend& be, const Bound& b) {
                    be.batch_norm_inference({.x = b["x"],
                                             .gamma = b["gamma"],
                                             .beta = b["beta"],
                                             .mean = b["mean"],
                                             .var = b["var"],
                                             .residual = b["residual"],
                                             .y = b["y"],
                                             .eps = kEps,
                                             .relu = v.relu});
                  },
              .reference =
                  [v](const Arrays& in, Arrays& out) {
                    out["y"] = reference::batch_norm_inference(in.at("x"), in.at("gamma"), in.at("beta"), in.at("mean"),
                                                               in.at("var"), v.residual ? in.at("residual") : Array(),
                                                               kEps, v.relu);
                  },
              .flops = 3.0 * static_cast<double>(v.x.size()),
              .in_place = {{"y", "x"}},
              .same_for_any_threads = true};
  if (v.residual) test.args.push_back(input("residual", v.x));
  return test;
}

OpCase l2_case(const Shape& s, Fill fill, const std::string& what) {
  return {.op = "l2_normalize",
          .detail = s.text() + what,
          .args = {input("x", s, std::move(fill)), output("y", s), output("norm", {s[0]})},
          .call = [](Backend& be,
                     const Bound& b) { be.l2_normalize({.x = b["x"], .y = b["y"], .norm = b["norm"], .eps = 1e-12f}); },
          .reference =
              [](const Arrays& in, Arrays& out) {
                const reference::L2Normalize r = reference::l2_normalize(in.at("x"), 1e-12f);
                out["y"] = r.y;
                out["norm"] = r.norm;
              },
          .flops = 3.0 * static_cast<double>(s.size())};
}

OpCase l2_grad_case(const Shape& s, Write write) {
  return {.op = "l2_normalize_grad",
          .detail = s.text() + text_of(write),
          .args = {input("dy", s), input("y", s, unit_rows()), input("norm", {s[0]}, uniform(0.1, 5)),
                   gradient("dx", s, write)},
          .call =
              [write](Backend& be, const Bound& b) {
                be.l2_normalize_grad({.dy = b["dy"], .y = b["y"], .norm = b["norm"], .dx = b["dx"], .write = write});
              },
          .reference =
              [](const Arrays& in, Arrays& out) {
                put(in, out, "dx", reference::l2_normalize_grad(in.at("dy"), in.at("y"), in.at("norm")));
              },
          .flops = 5.0 * static_cast<double>(s.size())};
}

}  // namespace

void add_norm_cases(OpCases& cases) {
  const Norm norms[] = {{{4, 3, 3, 16}},    {{8, 5, 3, 13}}, {{8, 5, 3, 13}, 2}, {{8, 2, 2, 24}, 4},  {{6, 7}},
                        {{6, 7}, 3},        {{2, 4, 4, 64}}, {{33, 1}},          {{4, 3, 3, 130}, 2}, {{2, 40, 41, 3}},
                        {{4, 2, 2, 17}, 4}, {{2, 1, 1, 5}},  {{16, 8, 8, 48}, 1}};
  for (Norm v : norms)
    for (int flags = 0; flags < 4; ++flags) {
      v.relu = flags & 1, v.residual = flags & 2;
      cases.push_back(forward_case(v, flags != 3));
      if (v.groups == 1) cases.push_back(inference_case(v));
      cases.push_back(grad_case(v, false, v.residual ? "xrgb" : "xgb"));
      cases.push_back(grad_case(v, true, v.residual ? "XRGB" : "XGB"));
    }
  for (const bool relu : {false, true}) {
    const Norm v{{4, 3, 5, 19}, 2, relu, true};
    for (const char* wanted : {"x", "r", "gb", "g", "b", "xr", "Xrgb", "xRgb", "xrGB", "Rgb", "XB"})
      for (const bool two : {false, true}) cases.push_back(grad_case(v, two, wanted));
  }
  // Large enough for several chunks per group and for stores past the caches.
  const Norm large{{2, 64, 130, 64}, 2, true, true}, folded{{2, 65, 171, 48}, 1, true, false};
  cases.push_back(forward_case(large, true));
  cases.push_back(grad_case(large, true, "xrgb"));
  cases.push_back(forward_case(folded, true, normal(1, 3)));
  cases.push_back(grad_case(folded, false, "xgb", normal(1, 3)));
  cases.push_back(inference_case(folded));
  // Variance as mean of squares minus square of mean loses every digit here.
  cases.push_back(
      forward_case({{8, 6, 6, 20}}, true, normal(1, 300), " mean 300",
                   {1e-9, 5e-5, "the mean itself is rounded to f32: 300 * 6e-8 of one standard deviation"}));
  cases.push_back(forward_case({{4, 5, 5, 9}, 2}, true, normal(1e-4), " deviation 1e-4"));
  cases.push_back(forward_case(
      {{4, 2, 2, 8}}, true,
      [](Array& a, Random&, bool) {
        for (double& x : a.v) x = 3;
      },
      " constant"));

  for (const Shape& s : {Shape{1, 1}, Shape{5, 128}, Shape{33, 19}, Shape{3, 1000}, Shape{300, 64}, Shape{2, 7}}) {
    cases.push_back(l2_case(s, normal(), ""));
    cases.push_back(l2_case(s, normal(1e-6), " small"));
    for (const Write write : kWrites) cases.push_back(l2_grad_case(s, write));
  }
  cases.push_back(l2_case({3, 17}, below(1), " zero"));
  cases.push_back(l2_case({3, 17}, normal(1e-14), " below eps"));
}

void add_norm_bench_cases(OpCases& cases, bool cifar, int64_t batch) {
  const int64_t stages = 4;
  for (int64_t i = 0; i < stages; ++i) {
    const int64_t side = (cifar ? 32 : 56) >> i, width = (cifar ? 64 : 256) << i;
    const Shape x{batch, side, side, width};
    for (const bool residual : {false, true}) {
      // Statistics come before they are used: x is read twice, and so is the gradient (of a residual block: as
      // dresidual).
      cases.push_back(forward_case({x, 1, true, residual}, true));
      cases.back().crossings["x"] = 2;
      cases.push_back(grad_case({x, 1, true, residual}, residual, residual ? "xrgb" : "xgb"));
      cases.back().crossings = {{"x", 2}, {residual ? "dresidual" : "dy", 2}, {"y", residual ? 1.0 : 0.0}};
    }
  }
  const Shape first = cifar ? Shape{batch, 32, 32, 64} : Shape{batch, 56, 56, 256};
  cases.push_back(inference_case({first, 1, true, true}));
  cases.push_back(l2_case({batch, 128}, normal(), ""));
  cases.push_back(l2_grad_case({batch, 128}, Write::overwrite));
}

}  // namespace csml::test
