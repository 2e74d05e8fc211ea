// Batch norm of one group on several processes, in parts.
#include "kernels/cpu/batch_norm.h"

namespace csml::cpu {

using namespace norm;

namespace {

/// The inputs that both halves of the gradient have in common.
template <class Args>
void check_gradient(const char* op, const Args& args, Mask mask) {
  const Shape& shape = args.x.shape;
  CHECK(shape.rank() >= 2 && shape.size() > 0, "{}: x {} is empty", op, shape.text());
  const int64_t channels = shape[shape.rank() - 1];
  check_like(op, "dy", args.dy, shape, true);
  check_like(op, "dy2", args.dy2, shape, false);
  check_like(op, "x", args.x, shape, true);
  check_like(op, "y", args.y, shape, mask == Mask::from_y);
  check_like(op, "gamma", args.gamma, {channels}, false);
  check_like(op, "beta", args.beta, {channels}, false);
  check_like(op, "mean", args.mean, {1, channels}, true);
  check_like(op, "rstd", args.rstd, {1, channels}, true);
}

}  // namespace

void batch_norm_moments(const Backend::BatchNormMoments& args) {
  constexpr const char* kOp = "batch_norm_moments";
  const Layout v = layout_of(kOp, args.x.shape, 1);
  check_like(kOp, "x", args.x, args.x.shape, true);
  check_like(kOp, "moments", args.moments, {2, v.channels}, true);
  CHECK(v.rows > 0 && v.channels > 0, "{}: x {} is empty", kOp, args.x.shape.text());
  thread_local Scratch sums_scratch;
  double* sums = sums_scratch.get<double>(v.tasks() * 2 * v.width);
  const float* x = args.x.as<float>();
  float* moments = args.moments.as<float>();
  chunk_moments(v, x, sums);
  parallel_for(v.channels, 64, [=](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const Moments m = group_moments(v, x, sums, 0, c);
      moments[c] = static_cast<float>(m.mean);
      moments[v.channels + c] = static_cast<float>(m.squares);
    }
  });
}

void batch_norm_merge(const Backend::BatchNormMerge& args) {
  constexpr const char* kOp = "batch_norm_merge";
  const Shape& shape = args.parts.shape;
  CHECK(shape.rank() == 3 && shape[0] > 0 && shape[1] == 2, "{}: parts must be [P, 2, C], got {}", kOp, shape.text());
  const int64_t parts = shape[0], channels = shape[2];
  check_like(kOp, "parts", args.parts, shape, true);
  check_like(kOp, "mean", args.mean, {1, channels}, true);
  check_like(kOp, "rstd", args.rstd, {1, channels}, true);
  check_like(kOp, "batch_mean", args.batch_mean, {channels}, false);
  check_like(kOp, "batch_var", args.batch_var, {channels}, false);
  CHECK(args.rows * parts > 1, "{}: {} parts of {} rows, needs 2 rows or more", kOp, parts, args.rows);
  const float* from = args.parts.as<float>();
  float *batch_mean = args.batch_mean.as<float>(), *batch_var = args.batch_var.as<float>();
  for (int64_t c = 0; c < channels; ++c) {
    Moments all;
    for (int64_t p = 0; p < parts; ++p) {
      const float* part = from + p * 2 * channels + c;
      all.merge({static_cast<double>(args.rows), part[0], part[channels]});
    }
    args.mean.as<float>()[c] = static_cast<float>(all.mean);
    args.rstd.as<float>()[c] = static_cast<float>(1.0 / std::sqrt(all.squares / all.count + args.eps));
    if (batch_mean) batch_mean[c] = static_cast<float>(all.mean);
    if (batch_var) batch_var[c] = static_cast<float>(all.squares / (all.count - 1));
  }
}

void batch_norm_apply(const Backend::BatchNormApply& args) {
  constexpr const char* kOp = "batch_norm_apply";
  const Layout v = layout_of(kOp, args.x.shape, 1);
  check_like(kOp, "x", args.x, args.x.shape, true);
  check_like(kOp, "y", args.y, args.x.shape, true);
  check_like(kOp, "gamma", args.gamma, {v.channels}, false);
  check_like(kOp, "beta", args.beta, {v.channels}, false);
  check_like(kOp, "mean", args.mean, {1, v.channels}, true);
  check_like(kOp, "rstd", args.rstd, {1, v.channels}, true);
  check_like(kOp, "residual", args.residual, args.x.shape, false);
  thread_local Scratch scratch;
  float* coefficients = scratch.get<float>(3 * v.width);
  affine_coefficients(v, args.gamma.as<float>(), args.beta.as<float>(), args.mean.as<float>(), args.rstd.as<float>(), 3,
                      coefficients);
  apply(v, args.x.as<float>(), args.residual.as<float>(), coefficients, args.relu, args.y.as<float>());
}

void batch_norm_grad_sums(const Backend::BatchNormGradSums& args) {
  constexpr const char* kOp = "batch_norm_grad_sums";
  const Mask mask = mask_of(args.relu, args.has_residual);
  check_gradient(kOp, args, mask);
  const Layout v = layout_of(kOp, args.x.shape, 1);
  check_like(kOp, "sums", args.sums, {2, v.channels}, true);
  check_like(kOp, "dresidual", args.dresidual, args.x.shape, false);
  check_like(kOp, "dgamma", args.dgamma, {v.channels}, false);
  check_like(kOp, "dbeta", args.dbeta, {v.channels}, false);
  thread_local Scratch sums_scratch, coefficients_scratch;
  double* sums = sums_scratch.get<double>(v.tasks() * 2 * v.width);
  float* coefficients = coefficients_scratch.get<float>(5 * v.width);
  affine_coefficients(v, args.gamma.as<float>(), args.beta.as<float>(), args.mean.as<float>(), args.rstd.as<float>(), 5,
                      coefficients);
  chunk_gradients(v, {args.dy.as<float>(), args.dy2.as<float>(), args.x.as<float>(), args.y.as<float>(), coefficients},
                  mask, args.dresidual.as<float>(), args.dresidual_write, sums);
  float *dgamma = args.dgamma.as<float>(), *dbeta = args.dbeta.as<float>();
  for (int64_t c = 0; c < v.channels; ++c) {
    const auto [s1, s2] = group_sums(v, sums, 0, c);
    args.sums.as<float>()[c] = static_cast<float>(s1);
    args.sums.as<float>()[v.channels + c] = static_cast<float>(s2);
    if (dbeta) dbeta[c] = static_cast<float>(s1 + (args.dbeta_write == Write::accumulate ? dbeta[c] : 0.0));
    if (dgamma)
      dgamma[c] = static_cast<float>(s2 * args.rstd.as<float>()[c] +
                                     (args.dgamma_write == Write::accumulate ? dgamma[c] : 0.0));
  }
}

void batch_norm_grad_apply(const Backend::BatchNormGradApply& args) {
  constexpr const char* kOp = "batch_norm_grad_apply";
  const Mask mask = mask_of(args.relu, args.has_residual);
  check_gradient(kOp, args, mask);
  const Layout v = layout_of(kOp, args.x.shape, 1);
  const Shape& shape = args.parts.shape;
  CHECK(shape.rank() == 3 && shape[0] > 0, "{}: parts must be [P, 2, C], got {}", kOp, shape.text());
  check_like(kOp, "parts", args.parts, {shape[0], 2, v.channels}, true);
  check_like(kOp, "dx", args.dx, args.x.shape, true);
  thread_local Scratch scratch;
  float* coefficients = scratch.get<float>(5 * v.width);
  affine_coefficients(v, args.gamma.as<float>(), args.beta.as<float>(), args.mean.as<float>(), args.rstd.as<float>(), 5,
                      coefficients);
  const double rows = static_cast<double>(v.rows * shape[0]);
  for (int64_t c = 0; c < v.channels; ++c) {
    double s1 = 0, s2 = 0;
    for (int64_t p = 0; p < shape[0]; ++p) {
      s1 += args.parts.as<float>()[p * 2 * v.channels + c];
      s2 += args.parts.as<float>()[(p * 2 + 1) * v.channels + c];
    }
    const double scale = coefficients[v.width + c], r = args.rstd.as<float>()[c];
    coefficients[3 * v.width + c] = static_cast<float>(-scale * r * r * s2 / rows);
    coefficients[4 * v.width + c] = static_cast<float>(-scale * s1 / rows);
  }
  widen(v, coefficients, 3, 5);
  apply_gradient(v, {args.dy.as<float>(), args.dy2.as<float>(), args.x.as<float>(), args.y.as<float>(), coefficients},
                 mask, args.dx.as<float>(), args.write);
}

}  // namespace csml::cpu
