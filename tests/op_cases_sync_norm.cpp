// Batch norm in parts (one group on several processes) in the table.
#include "tests/op_cases.h"
#include "tests/reference.h"

namespace csml::test {

namespace {

constexpr float kEps = 1e-5f;

struct Part {
  Shape x;
  bool relu = false, residual = false;

  int64_t channels() const { return x[x.rank() - 1]; }
  int64_t rows() const { return x.size() / channels(); }
  std::string text() const { return cat("{}{}{}", x.text(), residual ? " residual" : "", relu ? " relu" : ""); }
};

OpCase moments_case(const Shape& x, Fill fill = normal(), const std::string& what = "", Tolerance tolerance = {}) {
  const int64_t channels = x[x.rank() - 1], rows = x.size() / channels;
  return {.op = "batch_norm_moments",
          .detail = x.text() + what,
          .args = {input("x", x, std::move(fill)), output("moments", {2, channels}, tolerance)},
          .call = [](Backend& be, const Bound& b) { be.batch_norm_moments({.x = b["x"], .moments = b["moments"]}); },
          .reference =
              [=](const Arrays& in, Arrays& out) {
                Array moments({2, channels});
                for (int64_t c = 0; c < channels; ++c) {
                  double& mean = moments[c];
                  for (int64_t i = 0; i < rows; ++i) mean += in.at("x")[i * channels + c] / static_cast<double>(rows);
                  for (int64_t i = 0; i < rows; ++i) {
                    const double d = in.at("x")[i * channels + c] - mean;
                    moments[channels + c] += d * d;
                  }
                }
                out["moments"] = moments;
              },
          .flops = 4.0 * static_cast<double>(x.size()),
          .same_for_any_threads = true};
}

/// Parts whose means lie far apart, as far as `spread`: the merge must not lose the deviations inside them.
OpCase merge_case(int64_t parts, int64_t channels, int64_t rows, bool batch_statistics, double offset) {
  const auto fill = [=](Array& a, Random& random, bool) {
    for (int64_t i = 0; i < a.size(); ++i) {
      const bool is_mean = i / channels % 2 == 0;
      a[i] = is_mean ? offset + random.normal() : static_cast<double>(rows) * random.uniform(0.5f, 2.f);
    }
  };
  OpCase test{.op = "batch_norm_merge",
              .detail = cat("{} parts of {} rows, {} channels, mean {}", parts, rows, channels, offset),
              .args = {input("parts", {parts, 2, channels}, fill), output("mean", {1, channels}),
                       output("rstd", {1, channels})},
              .call =
                  [=](Backend& be, const Bound& b) {
                    be.batch_norm_merge({.parts = b["parts"],
                                         .mean = b["mean"],
                                         .rstd = b["rstd"],
                                         .batch_mean = b["batch_mean"],
                                         .batch_var = b["batch_var"],
                                         .rows = rows,
                                         .eps = kEps});
                  },
              .reference =
                  [=](const Arrays& in, Arrays& out) {
                    const Array& from = in.at("parts");
                    const double each = static_cast<double>(rows), all = each * static_cast<double>(parts);
                    Array mean({1, channels}), rstd({1, channels}), batch_mean({channels}), batch_var({channels});
                    for (int64_t c = 0; c < channels; ++c) {
                      double squares = 0;
                      for (int64_t p = 0; p < parts; ++p)
                        mean[c] += from[p * 2 * channels + c] / static_cast<double>(parts);
                      for (int64_t p = 0; p < parts; ++p) {
                        const double d = from[p * 2 * channels + c] - mean[c];
                        squares += from[(p * 2 + 1) * channels + c] + each * d * d;
                      }
                      rstd[c] = 1 / std::sqrt(squares / all + kEps);
                      batch_mean[c] = mean[c];
                      batch_var[c] = squares / (all - 1);
                    }
                    out = {{"mean", mean}, {"rstd", rstd}, {"batch_mean", batch_mean}, {"batch_var", batch_var}};
                  },
              .flops = 8.0 * static_cast<double>(parts * channels)};
  if (batch_statistics) {
    test.args.push_back(output("batch_mean", {channels}));
    test.args.push_back(output("batch_var", {channels}));
  }
  return test;
}

OpCase apply_case(const Part& v) {
  const Shape c{v.channels()}, row{1, v.channels()};
  OpCase test{.op = "batch_norm_apply",
              .detail = v.text(),
              .args = {input("x", v.x), input("gamma", c, normal(0.5, 1)), input("beta", c), input("mean", row),
                       input("rstd", row, uniform(0.2, 4)), output("y", v.x)},
              .call =
                  [v](Backend& be, const Bound& b) {
                    be.batch_norm_apply({.x = b["x"],
                                         .gamma = b["gamma"],
                                         .beta = b["beta"],
                                         .residual = b["residual"],
                                         .mean = b["mean"],
                                         .rstd = b["rstd"],
                                         .y = b["y"],
                                         .relu = v.relu});
                  },
              .reference =
                  [v](const Arrays& in, Arrays& out) {
                    Array var = in.at("rstd");  // whose inverse root, with no eps, is rstd
                    for (double& r : var.v) r = 1 / (r * r);
                    out["y"] =
                        reference::batch_norm_inference(in.at("x"), in.at("gamma"), in.at("beta"), in.at("mean"), var,
                                                        v.residual ? in.at("residual") : Array(), 0, v.relu);
                  },
              .flops = 3.0 * static_cast<double>(v.x.size()),
              .same_for_any_threads = true};
  if (v.residual) test.args.push_back(input("residual", v.x));
  return test;
}

/// The arrays that both halves of the gradient read, and y, which follows from them.
void add_gradient_inputs(OpCase& test, const Part& v, bool two_gradients) {
  const Shape c{v.channels()}, row{1, v.channels()};
  for (Arg arg : {input("dy", v.x), input("x", v.x), input("gamma", c, normal(0.5, 1)), input("beta", c),
                  input("mean", row), input("rstd", row, uniform(0.2, 4))})
    test.args.push_back(std::move(arg));
  if (two_gradients) test.args.push_back(input("dy2", v.x));
  if (!v.relu) return;
  test.args.push_back(input("y", v.x));
  test.prepare = [=](Arrays& in) {
    Array residual(v.x);
    Random random = random_of("residual " + v.text());
    if (v.residual) fill_normal(residual, random, false);
    Array y(v.x);
    for (int64_t i = 0; i < y.size(); ++i) {
      const int64_t k = i % v.channels();
      y[i] = in["gamma"][k] * (in["x"][i] - in["mean"][k]) * in["rstd"][k] + in["beta"][k] + residual[i];
    }
    drop_gradient_at_kinks(in, y);
    in["y"].v = reference::relu(y).v;  // in the type it has
  };
}

Array gradient_of_y(const Arrays& in, const Part& v) {
  const Array d = in.count("dy2") ? reference::add(in.at("dy"), in.at("dy2")) : in.at("dy");
  return v.relu ? reference::relu_grad(d, in.at("y")) : d;
}

OpCase sums_case(const Part& v, bool two_gradients, Write write, bool wants_parameters) {
  const Shape c{v.channels()};
  OpCase test{.op = "batch_norm_grad_sums",
              .detail = cat("{}{}{}{}", v.text(), two_gradients ? " dy2" : "", wants_parameters ? " parameters" : "",
                            text_of(write)),
              .args = {output("sums", {2, v.channels()})},
              .call =
                  [=](Backend& be, const Bound& b) {
                    be.batch_norm_grad_sums({.dy = b["dy"],
                                             .dy2 = b["dy2"],
                                             .x = b["x"],
                                             .y = b["y"],
                                             .gamma = b["gamma"],
                                             .beta = b["beta"],
                                             .mean = b["mean"],
                                             .rstd = b["rstd"],
                                             .sums = b["sums"],
                                             .dresidual = b["dresidual"],
                                             .dgamma = b["dgamma"],
                                             .dbeta = b["dbeta"],
                                             .relu = v.relu,
                                             .has_residual = v.residual,
                                             .dresidual_write = write,
                                             .dgamma_write = write,
                                             .dbeta_write = write});
                  },
              .reference =
                  [=](const Arrays& in, Arrays& out) {
                    const Array d = gradient_of_y(in, v);
                    Array sums({2, v.channels()}), dgamma({v.channels()}), dbeta({v.channels()});
                    for (int64_t i = 0; i < d.size(); ++i) {
                      const int64_t k = i % v.channels();
                      sums[k] += d[i];
                      sums[v.channels() + k] += d[i] * (in.at("x")[i] - in.at("mean")[k]);
                    }
                    for (int64_t k = 0; k < v.channels(); ++k) {
                      dbeta[k] = sums[k];
                      dgamma[k] = sums[v.channels() + k] * in.at("rstd")[k];
                    }
                    out["sums"] = sums;
                    put(in, out, "dresidual", d);
                    put(in, out, "dgamma", dgamma);
                    put(in, out, "dbeta", dbeta);
                  },
              .flops = 5.0 * static_cast<double>(v.x.size()),
              .same_for_any_threads = true};
  add_gradient_inputs(test, v, two_gradients);
  if (v.residual) test.args.push_back(gradient("dresidual", v.x, write));
  if (wants_parameters) {
    test.args.push_back(gradient("dgamma", c, write));
    test.args.push_back(gradient("dbeta", c, write));
  }
  return test;
}

OpCase grad_apply_case(const Part& v, bool two_gradients, int64_t parts, Write write) {
  OpCase test{.op = "batch_norm_grad_apply",
              .detail = cat("{}{} {} parts{}", v.text(), two_gradients ? " dy2" : "", parts, text_of(write)),
              .args = {input("parts", {parts, 2, v.channels()}, normal(std::sqrt(static_cast<double>(v.rows())))),
                       gradient("dx", v.x, write)},
              .call =
                  [=](Backend& be, const Bound& b) {
                    be.batch_norm_grad_apply({.dy = b["dy"],
                                              .dy2 = b["dy2"],
                                              .x = b["x"],
                                              .y = b["y"],
                                              .gamma = b["gamma"],
                                              .beta = b["beta"],
                                              .mean = b["mean"],
                                              .rstd = b["rstd"],
                                              .parts = b["parts"],
                                              .dx = b["dx"],
                                              .relu = v.relu,
                                              .has_residual = v.residual,
                                              .write = write});
                  },
              .reference =
                  [=](const Arrays& in, Arrays& out) {
                    const Array d = gradient_of_y(in, v);
                    Array sums({2, v.channels()}), dx(v.x);
                    for (int64_t i = 0; i < in.at("parts").size(); ++i)
                      sums[i % (2 * v.channels())] += in.at("parts")[i];
                    const double rows = static_cast<double>(v.rows() * parts);
                    for (int64_t i = 0; i < d.size(); ++i) {
                      const int64_t k = i % v.channels();
                      const double r = in.at("rstd")[k], centred = in.at("x")[i] - in.at("mean")[k];
                      dx[i] = in.at("gamma")[k] * r *
                              (d[i] - sums[k] / rows - centred * r * r * sums[v.channels() + k] / rows);
                    }
                    put(in, out, "dx", dx);
                  },
              .flops = 7.0 * static_cast<double>(v.x.size()),
              .same_for_any_threads = true};
  add_gradient_inputs(test, v, two_gradients);
  return test;
}

}  // namespace

void add_sync_norm_cases(OpCases& cases) {
  for (const Shape& x : {Shape{1, 1}, Shape{6, 3}, Shape{3, 5, 7, 19}, Shape{2, 4, 4, 64}, Shape{2, 33, 40, 96}})
    cases.push_back(moments_case(x));
  cases.push_back(
      moments_case({4, 6, 6, 20}, normal(1, 300), " mean 300",
                   {1e-9, 5e-5, "the mean itself is rounded to f32: 300 * 6e-8 of one standard deviation"}));
  for (const double offset : {0.0, 300.0}) {
    cases.push_back(merge_case(1, 5, 7, true, offset));
    cases.push_back(merge_case(4, 64, 49, true, offset));
    cases.push_back(merge_case(3, 300, 1000, false, offset));
  }
  cases.push_back(merge_case(2, 3, 1, true, 0));
  for (const Shape& x : {Shape{6, 3}, Shape{3, 5, 7, 19}, Shape{2, 9, 9, 64}})
    for (int flags = 0; flags < 4; ++flags) {
      const Part v{x, (flags & 1) != 0, (flags & 2) != 0};
      cases.push_back(apply_case(v));
      cases.push_back(sums_case(v, flags != 0, Write::overwrite, flags != 1));
      cases.push_back(sums_case(v, flags == 0, Write::accumulate, true));
      cases.push_back(grad_apply_case(v, flags != 0, 2, Write::overwrite));
      cases.push_back(grad_apply_case(v, flags == 0, 5, Write::accumulate));
    }
}

void add_sync_norm_bench_cases(OpCases& cases, bool cifar, int64_t batch) {
  const Part v{cifar ? Shape{batch, 32, 32, 64} : Shape{batch, 56, 56, 256}, true, true};
  constexpr int64_t kProcesses = 8;
  cases.push_back(moments_case(v.x));
  cases.push_back(merge_case(kProcesses, v.channels(), v.rows(), true, 0));
  cases.push_back(apply_case(v));
  cases.push_back(sums_case(v, true, Write::overwrite, true));
  // The residual's gradient is d, with ReLU and both gradients in it: the second half reads it alone.
  cases.push_back(grad_apply_case({v.x, false, false}, false, kProcesses, Write::overwrite));
}

}  // namespace csml::test
