#include "engine/sync_batch_norm.h"

namespace csml {

namespace {

/// mine [2, C] of the span's processes, [P, 2, C] by rank.
Tensor gathered(const Tensor& mine, const RankSpan& span) {
  const Tensor all(mine.device(), {span.comm->size(), 2, mine.shape()[1]});
  span.comm->all_gather(mine.reshape({1, 2, mine.shape()[1]}), all);
  return all.rows(span.first, span.count);
}

}  // namespace

Var sync_batch_norm(const Var& x, const Var& gamma, const Var& beta, const Var& residual,
                    const BatchNormOptions& options, const RankSpan& span) {
  CHECK(options.groups == 1 && span.comm && span.first <= span.comm->rank() &&
            span.comm->rank() < span.first + span.count,
        "sync_batch_norm: {} groups, processes {} … {} without this one", options.groups, span.first,
        span.first + span.count - 1);
  Device& device = x.value().device();
  const Shape& shape = x.shape();
  const int64_t channels = shape[shape.rank() - 1];
  const Tensor moments(device, {2, channels}), mean(device, {1, channels}), rstd(device, {1, channels});
  const Tensor y = like(x.value());
  const ConstView added = residual ? ConstView(residual.value()) : ConstView{};
  backend(y).batch_norm_moments({.x = x.value(), .moments = moments});
  backend(y).batch_norm_merge({.parts = gathered(moments, span),
                               .mean = mean,
                               .rstd = rstd,
                               .batch_mean = options.batch_mean,
                               .batch_var = options.batch_var,
                               .rows = shape.size() / channels,
                               .eps = options.eps});
  backend(y).batch_norm_apply({.x = x.value(),
                               .gamma = gamma.value(),
                               .beta = beta.value(),
                               .residual = added,
                               .mean = mean,
                               .rstd = rstd,
                               .y = y,
                               .relu = options.relu});
  const bool has_residual = static_cast<bool>(residual);
  return Var::op_of_sum(
      "sync_batch_norm", y, {x, gamma, beta, residual},
      [x = x.value(), gamma = gamma.value(), beta = beta.value(), y, mean, rstd, span, relu = options.relu,
       has_residual](const Tensor& dy, const Tensor& dy2, std::span<const Sink> dx) {
        const Tensor sums(dy.device(), {2, mean.shape()[1]});
        backend(dy).batch_norm_grad_sums({.dy = dy,
                                          .dy2 = dy2,
                                          .x = x,
                                          .y = y,
                                          .gamma = gamma,
                                          .beta = beta,
                                          .mean = mean,
                                          .rstd = rstd,
                                          .sums = sums,
                                          .dresidual = view_of(dx[3]),
                                          .dgamma = view_of(dx[1]),
                                          .dbeta = view_of(dx[2]),
                                          .relu = relu,
                                          .has_residual = has_residual,
                                          .dresidual_write = dx[3].write,
                                          .dgamma_write = dx[1].write,
                                          .dbeta_write = dx[2].write});
        if (!dx[0]) return;
        // Where dresidual was overwritten it holds d, the mask applied: one array to read instead of three.
        const bool d_is_known = dx[3] && dx[3].write == Write::overwrite;
        backend(dy).batch_norm_grad_apply({.dy = d_is_known ? dx[3].tensor : dy,
                                           .dy2 = d_is_known ? Tensor() : dy2,
                                           .x = x,
                                           .y = y,
                                           .gamma = gamma,
                                           .beta = beta,
                                           .mean = mean,
                                           .rstd = rstd,
                                           .parts = gathered(sums, span),
                                           .dx = dx[0].tensor,
                                           .relu = relu && !d_is_known,
                                           .has_residual = has_residual,
                                           .write = dx[0].write});
      });
}

}  // namespace csml
