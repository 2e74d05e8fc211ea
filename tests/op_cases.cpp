// The table's common parts.
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

}  // namespace csml::test
