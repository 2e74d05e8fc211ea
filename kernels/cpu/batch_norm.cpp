#include "kernels/cpu/batch_norm.h"

namespace csml::cpu {

using namespace norm;

void batch_norm(const Backend::BatchNorm& args) {
  constexpr const char* kOp = "batch_norm";
  const Layout v = layout_of(kOp, args.x.shape, args.groups);
  const int64_t channels = v.channels;
  const Shape per_channel{channels}, per_group{v.groups, channels};
  check_like(kOp, "x", args.x, args.x.shape, true);
  check_like(kOp, "y", args.y, args.x.shape, true);
  check_like(kOp, "gamma", args.gamma, per_channel, false);
  check_like(kOp, "beta", args.beta, per_channel, false);
  check_like(kOp, "residual", args.residual, args.x.shape, false);
  check_like(kOp, "mean", args.mean, per_group, true);
  check_like(kOp, "rstd", args.rstd, per_group, true);
  check_like(kOp, "batch_mean", args.batch_mean, per_channel, false);
  check_like(kOp, "batch_var", args.batch_var, per_channel, false);
  CHECK(v.rows > 1 && channels > 0, "{}: a group of x {} has {} values per channel, needs 2 or more (fewer groups)",
        kOp, args.x.shape.text(), v.rows);
  const float* x = args.x.as<float>();
  const float *gamma = args.gamma.as<float>(), *beta = args.beta.as<float>();
  float *mean = args.mean.as<float>(), *rstd = args.rstd.as<float>();
  float *batch_mean = args.batch_mean.as<float>(), *batch_var = args.batch_var.as<float>();

  thread_local Scratch sums_scratch, coefficients_scratch;
  double* sums = sums_scratch.get<double>(v.tasks() * 2 * v.width);
  float* coefficients = coefficients_scratch.get<float>(v.groups * 3 * v.width);
  chunk_moments(v, x, sums);

  parallel_for(channels, 64, [=, eps = args.eps](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      double mean_of_groups = 0, var_of_groups = 0;
      for (int64_t g = 0; g < v.groups; ++g) {
        const auto [count, average, squares] = group_moments(v, x, sums, g, c);
        const double var = squares / count;
        mean[g * channels + c] = static_cast<float>(average);
        rstd[g * channels + c] = static_cast<float>(1.0 / std::sqrt(var + eps));
        mean_of_groups += average;
        var_of_groups += squares / (count - 1);
        float* lane = coefficients + g * 3 * v.width + c;
        lane[0] = mean[g * channels + c];
        lane[v.width] = value_or(gamma, c, 1.f) * rstd[g * channels + c];
        lane[2 * v.width] = value_or(beta, c, 0.f);
        for (int64_t k = 0; k < 3; ++k)
          for (int64_t j = channels; j < v.width; j += channels) lane[k * v.width + j] = lane[k * v.width];
      }
      if (batch_mean) batch_mean[c] = static_cast<float>(mean_of_groups / static_cast<double>(v.groups));
      if (batch_var) batch_var[c] = static_cast<float>(var_of_groups / static_cast<double>(v.groups));
    }
  });
  apply(v, x, args.residual.as<float>(), coefficients, args.relu, args.y.as<float>());
}

void batch_norm_grad(const Backend::BatchNormGrad& args) {
  constexpr const char* kOp = "batch_norm_grad";
  const Layout v = layout_of(kOp, args.x.shape, args.groups);
  const int64_t channels = v.channels;
  const Shape per_channel{channels}, per_group{v.groups, channels};
  const Mask mask = mask_of(args.relu, args.has_residual);
  check_like(kOp, "dy", args.dy, args.x.shape, true);
  check_like(kOp, "dy2", args.dy2, args.x.shape, false);
  check_like(kOp, "x", args.x, args.x.shape, true);
  check_like(kOp, "y", args.y, args.x.shape, mask == Mask::from_y);
  check_like(kOp, "gamma", args.gamma, per_channel, false);
  check_like(kOp, "beta", args.beta, per_channel, false);
  check_like(kOp, "mean", args.mean, per_group, true);
  check_like(kOp, "rstd", args.rstd, per_group, true);
  check_like(kOp, "dx", args.dx, args.x.shape, false);
  check_like(kOp, "dresidual", args.dresidual, args.x.shape, false);
  check_like(kOp, "dgamma", args.dgamma, per_channel, false);
  check_like(kOp, "dbeta", args.dbeta, per_channel, false);
  CHECK(v.rows > 0 && channels > 0, "{}: x {} is empty", kOp, args.x.shape.text());
  const float *gamma = args.gamma.as<float>(), *beta = args.beta.as<float>();
  const float *mean = args.mean.as<float>(), *rstd = args.rstd.as<float>();
  float *dgamma = args.dgamma.as<float>(), *dbeta = args.dbeta.as<float>();
  float* dresidual = args.dresidual.as<float>();

  thread_local Scratch sums_scratch, coefficients_scratch;
  double* sums = sums_scratch.get<double>(v.tasks() * 2 * v.width);
  float* coefficients = coefficients_scratch.get<float>(v.groups * 5 * v.width);
  affine_coefficients(v, gamma, beta, mean, rstd, 5, coefficients);
  GradInputs in{args.dy.as<float>(), args.dy2.as<float>(), args.x.as<float>(), args.y.as<float>(), coefficients};
  chunk_gradients(v, in, mask, dresidual, args.dresidual_write, sums);

  parallel_for(channels, 64, [=, &args](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      double total_beta = 0, total_gamma = 0;
      for (int64_t g = 0; g < v.groups; ++g) {
        const auto [s1, s2] = group_sums(v, sums, g, c);
        const double r = rstd[g * channels + c], m = static_cast<double>(v.rows);
        total_beta += s1;
        total_gamma += s2 * r;
        float* lane = coefficients + g * 5 * v.width + c;
        const double scale = lane[v.width];
        lane[3 * v.width] = static_cast<float>(-scale * r * r * s2 / m);
        lane[4 * v.width] = static_cast<float>(-scale * s1 / m);
        for (int64_t k = 3; k < 5; ++k)
          for (int64_t j = channels; j < v.width; j += channels) lane[k * v.width + j] = lane[k * v.width];
      }
      if (dgamma)
        dgamma[c] = static_cast<float>(total_gamma + (args.dgamma_write == Write::accumulate ? dgamma[c] : 0.0));
      if (dbeta) dbeta[c] = static_cast<float>(total_beta + (args.dbeta_write == Write::accumulate ? dbeta[c] : 0.0));
    }
  });
  if (!args.dx) return;
  if (dresidual && args.dresidual_write == Write::overwrite) {  // it now holds d: one array to read instead of three
    in.dy = dresidual;
    in.dy2 = nullptr;
    apply_gradient(v, in, Mask::none, args.dx.as<float>(), args.dx_write);
  } else {
    apply_gradient(v, in, mask, args.dx.as<float>(), args.dx_write);
  }
}

void batch_norm_inference(const Backend::BatchNormInference& args) {
  constexpr const char* kOp = "batch_norm_inference";
  const Layout v = layout_of(kOp, args.x.shape, 1);
  const Shape per_channel{v.channels};
  check_like(kOp, "y", args.y, args.x.shape, false);
  check_like(kOp, "gamma", args.gamma, per_channel, false);
  check_like(kOp, "beta", args.beta, per_channel, false);
  check_like(kOp, "mean", args.mean, per_channel, true);
  check_like(kOp, "var", args.var, per_channel, true);
  check_like(kOp, "residual", args.residual, args.x.shape, false);
  if (args.x.size() == 0) return;
  const float *gamma = args.gamma.as<float>(), *beta = args.beta.as<float>();
  const float *mean = args.mean.as<float>(), *var = args.var.as<float>();
  thread_local Scratch scratch;
  float* coefficients = scratch.get<float>(3 * v.width);
  for (int64_t j = 0; j < v.width; ++j) {
    const int64_t c = j % v.channels;
    coefficients[j] = mean[c];
    coefficients[v.width + j] =
        static_cast<float>(value_or(gamma, c, 1.f) / std::sqrt(static_cast<double>(var[c]) + args.eps));
    coefficients[2 * v.width + j] = value_or(beta, c, 0.f);
  }
  apply(v, args.x.as<float>(), args.residual.as<float>(), coefficients, args.relu, args.y.as<float>());
}

}  // namespace csml::cpu
