// Which arrays of a call are activations, and so may be in 16 bits on a GPU.
#include <algorithm>
#include <set>

#include "tests/op_cases.h"

namespace csml::test {

namespace {

/// Arrays of a call that may be in 16 bits on a GPU. Calls that are not named here have none, or none yet.
const std::map<std::string, std::set<std::string>>& activations() {
  static const std::map<std::string, std::set<std::string>> all = {
      {"fill", {"y"}},
      {"copy", {"x", "y"}},
      {"axpy", {"x", "y"}},
      {"relu", {"x", "y"}},
      {"relu_grad", {"dy", "y", "dx"}},
      {"column_sum", {"x"}},
      {"gather", {"x", "y"}},
      {"conv2d", {"x", "w", "y"}},
      {"conv2d_grad_input", {"dy", "w", "dx"}},
      {"conv2d_grad_weight", {"dy", "x"}},
      {"matmul", {"a", "b", "c"}},
      {"max_pool", {"x", "y"}},
      {"max_pool_grad", {"dy", "dx"}},
      {"global_avg_pool", {"x", "y"}},
      {"global_avg_pool_grad", {"dy", "dx"}},
      {"batch_norm", {"x", "residual", "y"}},
      {"batch_norm_grad", {"dy", "dy2", "x", "y", "dx", "dresidual"}},
      {"batch_norm_inference", {"x", "residual", "y"}},
      {"batch_norm_moments", {"x"}},
      {"batch_norm_apply", {"x", "residual", "y"}},
      {"batch_norm_grad_sums", {"dy", "dy2", "x", "y", "dresidual"}},
      {"batch_norm_grad_apply", {"dy", "dy2", "x", "y", "dx"}},
      {"l2_normalize", {"x", "y"}},
      {"l2_normalize_grad", {"dy", "y", "dx"}},
      {"all_finite", {"x"}},
      {"ring_write", {"rows", "queue"}},
      {"info_nce",
       {"query", "positive0", "positive1", "positive2", "positive3", "positive4", "positive5", "positive6", "positive7",
        "queue", "dquery"}},
      {"cross_entropy", {"logits", "dlogits"}},
      {"top_k", {"queries", "bank"}},
      {"augment", {"y"}},
      {"cut_mix", {"a", "b", "y"}},
      {"row_dot", {"a", "b"}},
      {"scale_rows", {"x", "y"}},
      {"gather_window", {"x", "y"}},
      {"gather_window_grad", {"dy", "dx"}},
      {"best_window", {"x", "key"}}};
  return all;
}

/// dx of batch norm is computed from the sum of two gradients as dresidual holds it, where that is wanted: in 16 bits
/// both are rounded. A filter's gradient leaves cuDNN in 16 bits before it is added in f32, and what is added to a
/// 16-bit array may have been rounded before.
void allow_second_rounding(OpCase& c, DType type) {
  if (c.op == "conv2d_grad_weight" || c.op == "conv2d_grad_input" || c.op == "matmul")
    for (Arg& arg : c.args)
      if (arg.name == "dw" || (arg.role == Role::in_out && arg.dtype == type))
        arg.tolerance = rounded_to(type, arg.tolerance);
  const auto has = [&](const char* name, Role role) {
    return std::any_of(c.args.begin(), c.args.end(), [&](const Arg& a) { return a.name == name && a.role == role; });
  };
  if (c.op != "batch_norm_grad" || !has("dy2", Role::input) || !has("dresidual", Role::output)) return;
  for (Arg& arg : c.args)
    if (arg.name == "dx") arg.tolerance = rounded_to(type, arg.tolerance);
}

}  // namespace

std::optional<OpCase> in_type(const OpCase& c, DType type, const std::string& only) {
  const auto found = activations().find(c.op);
  if (found == activations().end()) return {};
  OpCase typed = c;
  typed.detail += cat(" {} {}", only, name_of(type));
  bool changed = false;
  for (Arg& arg : typed.args)
    if (arg.dtype == DType::f32 && found->second.count(arg.name) && (only.empty() || only == arg.name)) {
      arg.dtype = type;
      changed = true;
    }
  allow_second_rounding(typed, type);
  return changed ? std::optional<OpCase>(typed) : std::nullopt;
}

}  // namespace csml::test
