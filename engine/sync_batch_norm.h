// Synchronised batch norm: one batch-norm group whose rows lie on several processes.
#pragma once

#include "engine/comm.h"
#include "engine/ops.h"

namespace csml {

/// Processes [first, first + count) of comm, each of which holds as many rows of one group; this one is among them.
struct RankSpan {
  Comm* comm = nullptr;
  int first = 0, count = 1;
};

/// act(batch_norm(x) + residual) as batch_norm() has it, with the statistics of the rows of all processes of the span
/// (options.groups must be 1). Every process of comm must make this call, each within its span. Two gathers of [2, C]
/// f32 from every process: of moments in forward, of gradient sums in backward; merged in rank order, in double, so
/// that all hold the same bits. Gradients are of the sum of the span's losses.
Var sync_batch_norm(const Var& x, const Var& gamma, const Var& beta, const Var& residual,
                    const BatchNormOptions& options, const RankSpan& span);

}  // namespace csml
