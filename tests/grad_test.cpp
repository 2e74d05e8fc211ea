// Gradients of every differentiable op against central differences of its reference in double.
#include "engine/ops.h"
#include "tests/backend.h"
#include "tests/reference.h"

// After the project's headers: doctest's CHECK replaces that of kernels/check.h from here on.
#include <doctest/doctest.h>

#include <algorithm>

using namespace csml;
using namespace csml::test;

namespace {

using Inputs = std::vector<Array>;
using Vars = std::vector<Var>;

std::vector<float> floats(const Array& a) { return {a.v.begin(), a.v.end()}; }

Tensor tensor(Device& device, const Array& a) { return Tensor::from(device, a.shape, floats(a)); }

Array host(const Tensor& t) {
  const std::vector<float> values = t.host<float>();
  Array a(t.shape());
  a.v.assign(values.begin(), values.end());
  return a;
}

/// Rounded normal values, the same for the same name.
Array draw(const std::string& name, Shape shape, double scale = 1, double offset = 0) {
  Array a(shape);
  Random random = random_of(name);
  fill_normal(a, random, false, scale, offset);
  round_to_dtype(a);
  return a;
}

Array draw_unit_rows(const std::string& name, Shape shape) {
  Array a = reference::l2_normalize(draw(name, shape), 1e-12).y;
  round_to_dtype(a);
  return a;
}

/// Moves every value at least `gap` away from zero: a difference of step far below gap stays on one side of a ReLU.
Array off_zero(Array a, double gap = 0.05) {
  for (double& x : a.v) x += x < 0 ? -gap : gap;
  round_to_dtype(a);
  return a;
}

/// All values apart by at least 0.01, in random order: no two inputs of a maximum change places.
Array distinct(const std::string& name, Shape shape) {
  Array a(shape);
  Random random = random_of(name);
  for (int64_t i = 0; i < a.size(); ++i) a[i] = 0.01 * static_cast<double>(i - a.size() / 2);
  for (int64_t i = a.size() - 1; i > 0; --i) std::swap(a[i], a[random.below(static_cast<uint32_t>(i + 1))]);
  round_to_dtype(a);
  return a;
}

/// sum_i r[i] * y[i] as a scalar Var.
Var weighted_sum(const Var& y, const Array& r) {
  Device& device = y.value().device();
  const Tensor weights = tensor(device, r);
  double sum = 0;
  const std::vector<float> values = y.value().host<float>();
  for (int64_t i = 0; i < r.size(); ++i) sum += r[i] * values[static_cast<size_t>(i)];
  Tensor loss = Tensor::full(device, {1}, static_cast<float>(sum));
  return Var::op("weighted_sum", loss, {y}, [weights](const Tensor& dy, std::span<const Sink> dx) {
    if (dx[0]) backend(dy).axpy({.x = weights, .y = dx[0].tensor, .scale = dy, .write = dx[0].write});
  });
}

/// d/dx f(x) by central differences.
Array numeric_gradient(const std::function<double(const Inputs&)>& f, Inputs inputs, size_t which) {
  Array gradient(inputs[which].shape);
  constexpr double kStep = 1e-5;
  for (int64_t i = 0; i < gradient.size(); ++i) {
    const double x = inputs[which][i];
    inputs[which][i] = x + kStep;
    const double above = f(inputs);
    inputs[which][i] = x - kStep;
    const double below = f(inputs);
    inputs[which][i] = x;
    gradient[i] = (above - below) / (2 * kStep);
  }
  return gradient;
}

/// Differences of the double reference are good to about 1e-9 here, so the bounds are those of the f32 kernels.
constexpr Tolerance kGradient{1e-9, 5e-5, "chains of two kernels"};

/// Compares value and gradients of sum(r * op(inputs)) with the reference. Runs four times: every input as a leaf, then
/// with the op applied twice to the same leaves (so that gradients accumulate), then each input alone.
void check_gradients(const std::string& name, const Inputs& inputs, const std::function<Var(const Vars&)>& op,
                     const std::function<Array(const Inputs&)>& reference, const Tolerance& tolerance = kGradient) {
  const auto device = open_backend();
  const Array y = reference(inputs);
  const Array r1 = draw(name + " r1", y.shape), r2 = draw(name + " r2", y.shape);
  std::vector<Array> expected;
  for (const bool twice : {false, true}) {
    const Array r = twice ? reference::add(r1, r2) : r1;
    const auto objective = [&](const Inputs& x) { return reference::dot(r, reference(x)); };
    Vars leaves;
    for (const Array& input : inputs)
      leaves.push_back(Var::leaf(tensor(*device, input), Tensor::full(*device, input.shape, NAN)));
    const Var out = op(leaves);
    const std::string value_error = difference(name + ": value", host(out.value()), y);
    CHECK_MESSAGE(value_error.empty(), value_error);
    Var loss = weighted_sum(out, r1);
    if (twice) loss = add(loss, weighted_sum(op(leaves), r2));
    loss.backward();
    for (size_t i = 0; i < inputs.size(); ++i) {
      const Array want = numeric_gradient(objective, inputs, i);
      const std::string error = difference(cat("{}{}: d input {}", name, twice ? " used twice" : "", i),
                                           host(leaves[i].grad()), want, tolerance);
      CHECK_MESSAGE(error.empty(), error);
      if (!twice) expected.push_back(want);
    }
  }
  for (size_t i = 0; i < inputs.size(); ++i) {  // the other inputs are constants: their sinks are empty
    Vars vars;
    for (const Array& input : inputs) vars.emplace_back(tensor(*device, input));
    vars[i] = Var::leaf(vars[i].value(), Tensor::full(*device, inputs[i].shape, NAN));
    weighted_sum(op(vars), r1).backward();
    const std::string error =
        difference(cat("{}: d input {} alone", name, i), host(vars[i].grad()), expected[i], tolerance);
    CHECK_MESSAGE(error.empty(), error);
  }
}

}  // namespace

TEST_CASE("conv2d") {
  struct {
    Shape x, w;
    int stride, pad;
  } const cases[] = {{{2, 5, 4, 3}, {4, 3, 3, 3}, 1, 1},
                     {{1, 7, 6, 2}, {3, 3, 3, 2}, 2, 1},
                     {{2, 4, 4, 5}, {3, 1, 1, 5}, 2, 0},
                     {{1, 9, 9, 1}, {2, 7, 7, 1}, 2, 3}};
  for (const auto& c : cases) {
    const std::string name = cat("conv2d {} by {}", c.x.text(), c.w.text());
    check_gradients(
        name, {draw(name + "x", c.x), draw(name + "w", c.w)},
        [&](const Vars& v) { return conv2d(v[0], v[1], c.stride, c.pad); },
        [&](const Inputs& a) { return reference::conv2d(a[0], a[1], c.stride, c.pad); });
  }
}

TEST_CASE("linear") {
  const Array x = draw("linear x", {5, 7}), w = draw("linear w", {3, 7}), b = draw("linear b", {3});
  check_gradients(
      "linear", {x, w, b}, [](const Vars& v) { return linear(v[0], v[1], v[2]); },
      [](const Inputs& a) { return reference::matmul(a[0], a[1], a[2], false, true); });
  check_gradients(
      "linear without bias", {x, w}, [](const Vars& v) { return linear(v[0], v[1], {}); },
      [](const Inputs& a) { return reference::matmul(a[0], a[1], {}, false, true); });
}

TEST_CASE("relu, add, scale, reshape") {
  const Array x = off_zero(draw("relu", {3, 11})), z = draw("add", {3, 11});
  check_gradients(
      "relu", {x}, [](const Vars& v) { return relu(v[0]); }, [](const Inputs& a) { return reference::relu(a[0]); });
  check_gradients(
      "add", {x, z}, [](const Vars& v) { return add(v[0], v[1]); },
      [](const Inputs& a) { return reference::add(a[0], a[1]); });
  check_gradients(
      "add to itself", {x}, [](const Vars& v) { return add(v[0], v[0]); },
      [](const Inputs& a) { return reference::add(a[0], a[0]); });
  check_gradients(
      "scale", {x}, [](const Vars& v) { return scale(v[0], -0.3f); },
      [](const Inputs& a) {
        Array y = a[0];
        for (double& value : y.v) value *= static_cast<double>(-0.3f);
        return y;
      });
  check_gradients(
      "reshape", {x},
      [](const Vars& v) {
        return reshape(v[0], {11, 3});
      },
      [](const Inputs& a) {
        Array y = a[0];
        y.shape = {11, 3};
        return y;
      });
}

TEST_CASE("pooling") {
  struct {
    Shape x;
    int window, stride, pad;
  } const cases[] = {{{2, 7, 6, 3}, 3, 2, 1}, {{1, 6, 6, 2}, 2, 2, 0}, {{1, 5, 5, 2}, 3, 1, 1}};
  for (const auto& c : cases) {
    const std::string name = cat("max_pool {} window {}", c.x.text(), c.window);
    check_gradients(
        name, {distinct(name, c.x)}, [&](const Vars& v) { return max_pool(v[0], c.window, c.stride, c.pad); },
        [&](const Inputs& a) { return reference::max_pool(a[0], c.window, c.stride, c.pad).y; });
  }
  check_gradients(
      "global_avg_pool", {draw("average", {2, 3, 5, 4})}, [](const Vars& v) { return global_avg_pool(v[0]); },
      [](const Inputs& a) { return reference::global_avg_pool(a[0]); });
}

TEST_CASE("l2_normalize") {
  for (const double scale : {1.0, 0.05, 30.0})
    check_gradients(
        cat("l2_normalize of size {}", scale), {draw("l2", {4, 9}, scale)},
        [](const Vars& v) { return l2_normalize(v[0]); },
        [](const Inputs& a) { return reference::l2_normalize(a[0], 1e-12).y; }, {1e-8, 1e-4, "small rows: steep"});
}

TEST_CASE("batch_norm") {
  struct {
    Shape x;
    int groups;
  } const cases[] = {{{4, 3, 2, 3}, 1}, {{8, 2, 2, 2}, 2}, {{12, 3}, 3}};
  for (const auto& c : cases)
    for (const bool has_residual : {false, true})
      for (const bool with_relu : {false, true}) {
        const std::string name = cat("batch_norm {} groups {}{}{}", c.x.text(), c.groups,
                                     has_residual ? " residual" : "", with_relu ? " relu" : "");
        const Shape channels{c.x[c.x.rank() - 1]};
        Inputs inputs;
        const auto forward = [&](const Inputs& a, bool act) {
          return reference::batch_norm(a[0], a[1], a[2], has_residual ? a[3] : Array(), c.groups, 1e-5, act).y;
        };
        // Draws until no output is near the kink: then no step of the differences crosses it.
        for (int attempt = 0;; ++attempt) {
          const std::string key = cat("{} {}", name, attempt);
          inputs = {draw(key + "x", c.x), off_zero(draw(key + "g", channels), 0.3), draw(key + "b", channels)};
          if (has_residual) inputs.push_back(draw(key + "r", c.x));
          const Array y = forward(inputs, false);
          if (std::all_of(y.v.begin(), y.v.end(), [](double v) { return std::abs(v) > 1e-3; })) break;
          REQUIRE(attempt < 1000);
        }
        const auto op = [&](const Vars& v) {
          return batch_norm(v[0], v[1], v[2], has_residual ? v[3] : Var(),
                            {.groups = c.groups, .relu = with_relu, .batch_mean = {}, .batch_var = {}});
        };
        check_gradients(name, inputs, op, [&](const Inputs& a) { return forward(a, with_relu); });

        // One output used three times: the first two gradients are summed on load, the third is accumulated.
        const auto device = open_backend();
        Vars leaves;
        for (const Array& input : inputs)
          leaves.push_back(Var::leaf(tensor(*device, input), Tensor::full(*device, input.shape, NAN)));
        const Var y = op(leaves);
        Array total(c.x);
        Var loss;
        for (int i = 0; i < 3; ++i) {
          const Array r = draw(cat("{} use {}", name, i), c.x);
          total = reference::add(total, r);
          loss = loss ? add(loss, weighted_sum(y, r)) : weighted_sum(y, r);
        }
        loss.backward();
        for (size_t i = 0; i < inputs.size(); ++i) {
          const Array want = numeric_gradient(
              [&](const Inputs& a) { return reference::dot(total, forward(a, with_relu)); }, inputs, i);
          const std::string error =
              difference(cat("{} used three times: d input {}", name, i), host(leaves[i].grad()), want, kGradient);
          CHECK_MESSAGE(error.empty(), error);
        }
      }
}

TEST_CASE("info_nce") {
  const auto device = open_backend();
  const Array queue = draw_unit_rows("queue", {23, 6}), weights = draw("weights", {2}, 0.2, 1);
  const std::vector<Array> keys = {draw_unit_rows("key 0", {5, 6}), draw_unit_rows("key 1", {5, 6})};
  for (const float temperature : {0.07f, 0.2f, 1.f})
    check_gradients(
        cat("info_nce T {}", temperature), {draw_unit_rows("query", {5, 6})},
        [&](const Vars& v) {
          Device& d = v[0].value().device();
          return info_nce(v[0], {tensor(d, keys[0]), tensor(d, keys[1])}, tensor(d, weights), tensor(d, queue),
                          temperature);
        },
        [&](const Inputs& a) {
          Array loss({1});
          loss[0] = reference::info_nce(a[0], keys, weights, queue, temperature).loss;
          return loss;
        });
}

TEST_CASE("cross_entropy") {
  Array labels({5}, DType::i32);
  labels.v = {0, 3, 6, 3, 1};
  check_gradients(
      "cross_entropy", {draw("logits", {5, 7}, 2)},
      [&](const Vars& v) {
        return cross_entropy(
            v[0], Tensor::from(v[0].value().device(), {5}, std::vector<int32_t>(labels.v.begin(), labels.v.end())));
      },
      [&](const Inputs& a) {
        Array loss({1});
        loss[0] = reference::cross_entropy(a[0], labels).loss;
        return loss;
      });
}

TEST_CASE("a residual block with a projection head") {
  const Array queue = draw_unit_rows("block queue", {9, 4}), key = draw_unit_rows("block key", {4, 4});
  const Array one = [] {
    Array w({1});
    w[0] = 1;
    return w;
  }();
  // x, conv 1, gamma, beta, conv 2, gamma, beta, head
  Inputs inputs;
  const auto block = [&](const Inputs& a, bool* clear) {
    const Array h1 = reference::batch_norm(reference::conv2d(a[0], a[1], 1, 1), a[2], a[3], {}, 2, 1e-5, false).y;
    const Array h2 =
        reference::batch_norm(reference::conv2d(reference::relu(h1), a[4], 1, 1), a[5], a[6], a[0], 1, 1e-5, false).y;
    if (clear)
      for (const Array& h : {h1, h2})
        for (double v : h.v) *clear = *clear && std::abs(v) > 1e-3;
    return reference::l2_normalize(
               reference::matmul(reference::global_avg_pool(reference::relu(h2)), a[7], {}, false, true), 1e-12)
        .y;
  };
  for (int attempt = 0;; ++attempt) {
    const std::string key_name = cat("block {}", attempt);
    inputs = {draw(key_name + "x", {4, 3, 3, 3}),
              draw(key_name + "w", {3, 3, 3, 3}, 0.3),
              off_zero(draw(key_name + "g", {3}), 0.3),
              draw(key_name + "b", {3}),
              draw(key_name + "v", {3, 3, 3, 3}, 0.3),
              off_zero(draw(key_name + "h", {3}), 0.3),
              draw(key_name + "c", {3}),
              draw(key_name + "p", {4, 3})};
    bool clear = true;
    block(inputs, &clear);
    if (clear) break;
    REQUIRE(attempt < 1000);
  }
  check_gradients(
      "block", inputs,
      [&](const Vars& v) {
        const Var h1 = batch_norm(conv2d(v[0], v[1], 1, 1), v[2], v[3], {},
                                  {.groups = 2, .relu = true, .batch_mean = {}, .batch_var = {}});
        const Var h2 =
            batch_norm(conv2d(h1, v[4], 1, 1), v[5], v[6], v[0], {.relu = true, .batch_mean = {}, .batch_var = {}});
        Device& device = v[0].value().device();
        return info_nce(l2_normalize(linear(global_avg_pool(h2), v[7], {})), {tensor(device, key)}, tensor(device, one),
                        tensor(device, queue), 0.2f);
      },
      [&](const Inputs& a) {
        Array loss({1});
        loss[0] = reference::info_nce(block(a, nullptr), {key}, one, queue, 0.2f).loss;
        return loss;
      },
      {1e-8, 2e-4, "a chain of seven kernels"});
}

TEST_CASE("similarities, their losses in every form, rows of several") {
  const Array a = draw_unit_rows("row_dots a", {4, 6}), b = draw_unit_rows("row_dots b", {4, 6}),
              c = draw_unit_rows("row_dots c", {4, 6});
  check_gradients(
      "row_dots", {a, b, c},
      [](const Vars& v) {
        return row_dots(v[0], {v[1], v[2]});
      },
      [](const Inputs& x) {
        Array y({2, 4});
        for (int64_t i = 0; i < 4; ++i) {
          y[i] = reference::row_dot(x[0], x[1])[i];
          y[4 + i] = reference::row_dot(x[0], x[2])[i];
        }
        return y;
      });
  check_gradients(
      "concat_rows", {a, draw("concat", {2, 6})},
      [](const Vars& v) {
        return concat_rows({v[0], v[1]});
      },
      [](const Inputs& x) {
        Array y({6, 6});
        y.v = x[0].v;
        y.v.insert(y.v.end(), x[1].v.begin(), x[1].v.end());
        return y;
      });
  const Array positives = draw("multi positives", {2, 5}, 0.4), negatives = draw("multi negatives", {5, 9}, 0.4);
  Array weights({2}), own({5}, DType::i32), ids({9}, DType::i32);
  weights.v = {0.7, 0.3};
  round_to_dtype(weights);
  for (int64_t i = 0; i < 5; ++i) own[i] = static_cast<double>(i);
  for (int64_t i = 0; i < 9; ++i) ids[i] = static_cast<double>(i % 5);
  using Form = Backend::Form;
  // Cosines of negatives with the keys: those above the threshold do not count.
  const std::vector<Array> close{draw("multi close", {5, 9}), draw("multi close too", {5, 9})};
  for (const auto& kind : {std::pair{Form::csml, false}, std::pair{Form::csml, true}, std::pair{Form::out, false},
                           std::pair{Form::out, true}, std::pair{Form::in, false}, std::pair{Form::in, true},
                           std::pair{Form::mil, false}, std::pair{Form::mil, true}, std::pair{Form::cosine, false}}) {
    const Form form = kind.first;
    const bool filtered = kind.second, cosine = form == Form::cosine;
    const double threshold = filtered ? 0.6 : 1e9;
    const std::vector<Array> keys = filtered ? close : std::vector<Array>{};
    check_gradients(
        cat("multi_positive {}{}", static_cast<int>(form), filtered ? ", filtered" : ""),
        cosine ? Inputs{positives} : Inputs{positives, negatives},
        [&](const Vars& v) {
          Device& device = v[0].value().device();
          MultiPositiveOptions options{.temperature = 0.5f, .form = form};
          options.threshold = static_cast<float>(threshold);
          for (const Array& key : keys) options.close.push_back(tensor(device, key));
          if (!cosine) {
            options.own = Tensor::from(device, {5}, std::vector<int32_t>(own.v.begin(), own.v.end()));
            options.ids = Tensor::from(device, {9}, std::vector<int32_t>(ids.v.begin(), ids.v.end()));
          }
          return multi_positive(v[0], cosine ? Var() : v[1], tensor(device, weights), options);
        },
        [&](const Inputs& x) {
          Array loss({1});
          loss[0] =
              reference::multi_positive(x[0], cosine ? Array() : x[1], weights, own, ids, keys, threshold, 0.5, form)
                  .loss;
          return loss;
        });
  }
}

TEST_CASE("gather_window") {
  Array corner({3, 2}, DType::i32);
  corner.v = {0, 2, 1, 0, 2, 1};
  check_gradients(
      "gather_window", {draw("map", {3, 5, 4, 2})},
      [&](const Vars& v) {
        const std::vector<int32_t> values(corner.v.begin(), corner.v.end());
        return gather_window(v[0], Tensor::from(v[0].value().device(), {3, 2}, values), 3, 2);
      },
      [&](const Inputs& x) { return reference::gather_window(x[0], corner, 3, 2); });
}

TEST_CASE("batch_norm_inference and constants take part without a gradient") {
  const auto device = open_backend();
  const Array x = draw("inference", {4, 3});
  const Tensor one = Tensor::full(*device, {3}, 1), zero = Tensor::full(*device, {3}, 0);
  const Var leaf = Var::leaf(tensor(*device, x), Tensor::full(*device, {4, 3}, 7));
  const Var y = batch_norm_inference(leaf, Var(one), Var(zero), zero, one, {}, false);
  CHECK_FALSE(y.requires_grad());
  weighted_sum(y, x).backward();
  CHECK_FALSE(leaf.grad_written());
  CHECK(leaf.grad().host<float>() == std::vector<float>(12, 7.f));
}
