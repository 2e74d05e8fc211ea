// Multi-positive losses and windows of feature maps in the table.
#include <algorithm>

#include "tests/op_cases.h"
#include "tests/reference.h"

namespace csml::test {

namespace {

using Form = Backend::Form;

const char* text_of(Form form) {
  const char* names[] = {"csml", "out", "in", "mil", "cosine"};
  return names[static_cast<int>(form)];
}

struct Multi {
  int64_t batch, keys;
  std::vector<double> weights;
  Form form = Form::csml;
  float temperature = 0.2f;
  bool ids = false, close = false, gradients = true;
};

OpCase multi_positive_case(const Multi& v) {
  const auto count = static_cast<int64_t>(v.weights.size());
  const Shape negatives{v.batch, v.keys};
  OpCase test{.op = "multi_positive",
              .detail = cat("{} {}x{} positives {} T {}{}{}{}", text_of(v.form), v.batch, v.keys, count, v.temperature,
                            v.ids ? " ids" : "", v.close ? " close" : "", v.gradients ? "" : " loss only"),
              .args = {input("positives", {count, v.batch}, uniform(-1, 1)),
                       input("weights", {count}, values(v.weights)), output("loss", {1})},
              .call =
                  [v](Backend& be, const Bound& b) {
                    Backend::MultiPositive args{.positives = b["positives"],
                                                .negatives = b["negatives"],
                                                .weights = b["weights"],
                                                .own = b["own"],
                                                .ids = b["ids"],
                                                .close = {},
                                                .threshold = 0.3f,
                                                .temperature = v.temperature,
                                                .form = v.form,
                                                .loss = b["loss"],
                                                .dpositives = b["dpositives"],
                                                .dnegatives = b["dnegatives"],
                                                .positive_similarity = b["positive_similarity"],
                                                .negative_similarity = b["negative_similarity"]};
                    if (b["close"]) args.close.push_back(b["close"]);
                    be.multi_positive(args);
                  },
              .reference =
                  [v](const Arrays& in, Arrays& out) {
                    const auto get = [&](const char* name) { return in.contains(name) ? in.at(name) : Array(); };
                    std::vector<Array> close;
                    if (v.close) close.push_back(in.at("close"));
                    const reference::MultiPositive r =
                        reference::multi_positive(in.at("positives"), get("negatives"), in.at("weights"), get("own"),
                                                  get("ids"), close, 0.3f, v.temperature, v.form);
                    out["loss"] = out["negative_similarity"] = Array({1});
                    out["loss"][0] = r.loss;
                    out["negative_similarity"][0] = r.negative_similarity;
                    out["dpositives"] = r.dpositives;
                    out["dnegatives"] = r.dnegatives;
                    out["positive_similarity"] = r.positive_similarity;
                  },
              .flops = 8.0 * static_cast<double>(v.batch * v.keys),
              .same_for_any_threads = true};
  const bool has_negatives = v.keys > 0;
  if (has_negatives) test.args.push_back(input("negatives", negatives, uniform(-1, 1)));
  if (v.ids) {
    test.args.push_back(input("own", {v.batch}, below(5), DType::i32));
    test.args.push_back(input("ids", {v.keys}, below(7), DType::i32));
  }
  if (v.close) test.args.push_back(input("close", negatives, uniform(-1, 1)));
  if (!v.gradients) return test;
  test.args.push_back(output("dpositives", {count, v.batch}));
  if (has_negatives) test.args.push_back(output("dnegatives", negatives));
  test.args.push_back(output("positive_similarity", {count}));
  test.args.push_back(output("negative_similarity", {1}));
  return test;
}

/// Corners such that windows of the given size stay inside.
Fill corners(const Shape& map, int64_t rows, int64_t columns) {
  return [=](Array& a, Random& random, bool) {
    for (int64_t n = 0; n < map[0]; ++n) {
      a[2 * n] = random.below(static_cast<uint32_t>(map[1] - rows + 1));
      a[2 * n + 1] = random.below(static_cast<uint32_t>(map[2] - columns + 1));
    }
  };
}

/// Windows of rows x columns of a map.
struct Patch {
  Shape map;
  int64_t rows, columns;
  int stride;

  Shape window() const { return {map[0], rows, columns, map[3]}; }
  std::string text() const { return cat("{} of {}", window().text(), map.text()); }
  Arg corner() const { return input("corner", {map[0], 2}, corners(map, rows, columns), DType::i32); }
};

OpCase gather_window_case(const Patch& v) {
  return {
      .op = "gather_window",
      .detail = v.text(),
      .args = {input("x", v.map), v.corner(), output("y", v.window(), kExact)},
      .call = [](Backend& be, const Bound& b) { be.gather_window({.x = b["x"], .corner = b["corner"], .y = b["y"]}); },
      .reference =
          [v](const Arrays& in, Arrays& out) {
            out["y"] = reference::gather_window(in.at("x"), in.at("corner"), v.rows, v.columns);
          }};
}

OpCase gather_window_grad_case(const Patch& v, Write write) {
  return {.op = "gather_window_grad",
          .detail = v.text() + csml::test::text_of(write),
          .args = {input("dy", v.window()), v.corner(), gradient("dx", v.map, write)},
          .call =
              [write](Backend& be, const Bound& b) {
                be.gather_window_grad({.dy = b["dy"], .corner = b["corner"], .dx = b["dx"], .write = write});
              },
          .reference =
              [v](const Arrays& in, Arrays& out) {
                put(in, out, "dx", reference::gather_window_grad(in.at("dy"), in.at("corner"), v.map));
              }};
}

/// Map and key from one fill: where all values are equal, every window is as good as the first.
OpCase best_window_case(const Patch& v, const Fill& fill, const std::string& what) {
  const auto candidates = [&](int64_t last) { return (last + v.stride - 1) / v.stride + 1; };
  const int64_t windows = candidates(v.map[1] - v.rows) * candidates(v.map[2] - v.columns);
  return {.op = "best_window",
          .detail = cat("{} stride {}{}", v.text(), v.stride, what),
          .args = {input("x", v.map, fill), input("key", v.window(), fill),
                   output("corner", {v.map[0], 2}, kExact, DType::i32)},
          .call =
              [v](Backend& be, const Bound& b) {
                be.best_window({.x = b["x"], .key = b["key"], .corner = b["corner"], .stride = v.stride});
              },
          .reference = [v](const Arrays& in,
                           Arrays& out) { out["corner"] = reference::best_window(in.at("x"), in.at("key"), v.stride); },
          .flops = 2.0 * static_cast<double>(windows * v.window().size()),
          .same_for_any_threads = true};
}

OpCase row_dot_case(const Shape& s) {
  return {.op = "row_dot",
          .detail = s.text(),
          .args = {input("a", s), input("b", s), output("y", {s[0]})},
          .call = [](Backend& be, const Bound& b) { be.row_dot({.a = b["a"], .b = b["b"], .y = b["y"]}); },
          .reference = [](const Arrays& in, Arrays& out) { out["y"] = reference::row_dot(in.at("a"), in.at("b")); },
          .flops = 2.0 * static_cast<double>(s.size()),
          .same_for_any_threads = true};
}

OpCase scale_rows_case(const Shape& s, Write write) {
  return {.op = "scale_rows",
          .detail = s.text() + csml::test::text_of(write),
          .args = {input("x", s), input("scale", {s[0]}), gradient("y", s, write)},
          .call =
              [write](Backend& be, const Bound& b) {
                be.scale_rows({.x = b["x"], .scale = b["scale"], .y = b["y"], .write = write});
              },
          .reference = [](const Arrays& in,
                          Arrays& out) { put(in, out, "y", reference::scale_rows(in.at("x"), in.at("scale"))); },
          .flops = static_cast<double>(s.size()),
          .same_for_any_threads = true};
}

}  // namespace

void add_view_cases(OpCases& cases) {
  for (const Shape& s : {Shape{1, 1}, Shape{7, 33}, Shape{300, 128}}) {
    cases.push_back(row_dot_case(s));
    for (const Write write : kWrites) cases.push_back(scale_rows_case(s, write));
  }
  for (const Form form : {Form::csml, Form::out, Form::in, Form::mil}) {
    cases.push_back(multi_positive_case({5, 33, {1}, form}));
    cases.push_back(multi_positive_case({7, 300, {0.7, 0.3}, form}));
    cases.push_back(multi_positive_case({9, 65, {0.5, 0}, form, 0.1f, true}));
    cases.push_back(multi_positive_case({6, 40, {0.5, 0.5}, form, 0.2f, true, true}));
    cases.push_back(multi_positive_case({4, 20, {1, 2, 3}, form, 1.f, false, true}));
    cases.push_back(multi_positive_case({3, 10, {0, 0}, form}));
    cases.push_back(multi_positive_case({8, 50, {0.4, 0.6}, form, 0.2f, true, false, false}));
  }
  cases.push_back(multi_positive_case({6, 0, {1}, Form::cosine}));
  cases.push_back(multi_positive_case({11, 0, {0.3, 0.7}, Form::cosine}));

  const Patch patches[] = {{{1, 1, 1, 1}, 1, 1, 1}, {{3, 8, 8, 16}, 5, 5, 2}, {{2, 14, 14, 33}, 8, 8, 3},
                           {{4, 7, 9, 5}, 3, 4, 1}, {{2, 6, 6, 8}, 6, 6, 1},  {{5, 4, 4, 130}, 2, 3, 5},
                           {{2, 9, 7, 3}, 4, 2, 2}};
  for (const Patch& v : patches) {
    cases.push_back(gather_window_case(v));
    for (const Write write : kWrites) cases.push_back(gather_window_grad_case(v, write));
    cases.push_back(best_window_case(v, normal(), ""));
    cases.push_back(best_window_case(v, below(1), " zeros"));
    cases.push_back(best_window_case(
        v, [](Array& a, Random&, bool) { std::fill(a.v.begin(), a.v.end(), 0.3); }, " all equal"));
  }
}

void add_view_bench_cases(OpCases& cases, bool cifar, int64_t batch) {
  cases.push_back(row_dot_case({batch, 128}));
  cases.push_back(scale_rows_case({batch, 128}, Write::overwrite));
  cases.push_back(multi_positive_case({batch, cifar ? 4096 : 65536, {0.5, 0.5}, Form::out}));
  cases.back().crossings["negatives"] = 2;  // for the sum, and then for the gradient
  const Patch patch = cifar ? Patch{{batch, 8, 8, 256}, 5, 5, 2} : Patch{{batch, 14, 14, 1024}, 8, 8, 3};  // res4
  const double share =
      static_cast<double>(patch.rows * patch.columns) / static_cast<double>(patch.map[1] * patch.map[2]);
  cases.push_back(gather_window_case(patch));
  cases.back().crossings["x"] = share;
  cases.push_back(gather_window_grad_case(patch, Write::overwrite));
  cases.push_back(gather_window_grad_case(patch, Write::accumulate));
  cases.back().crossings["dx"] = 2 * share;
  cases.push_back(best_window_case(patch, normal(), ""));
}

}  // namespace csml::test
