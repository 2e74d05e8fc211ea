// How the global batch of a step lies on the processes.
#pragma once

#include "csml/config/config.h"
#include "data/loader.h"
#include "engine/comm.h"

namespace csml {

/// Batch-norm groups, shuffle spans and every draw of a step are defined on the global batch; a process holds the
/// contiguous rows [first, first + local) of it: whole groups or, with method.bn_sync, an equal part of one.
struct BatchLayout {
  int64_t global = 0, local = 0, first = 0;
  int64_t part = 0;  // rows of one forward: local / train.accumulate, whole groups
  int parts = 1;
  int64_t group = 0;    // images of a batch-norm group
  int group_ranks = 1;  // processes that share one
  int64_t span = 0;     // images inside which the keys are permuted
  /// The span is wider than a process: its images come from the loader in permuted order, and keys, not images, are
  /// gathered. Else the permutation is done on the device.
  bool loader_shuffles = false;
};
/// Throws UsageError, with what to change, where the batch cannot be shared out.
BatchLayout batch_layout(const Config& config, const Comm& comm);
/// How this process loads its part of every batch.
LoaderOptions training_loader_options(const Config& config, const Comm& comm, BadImageCallback on_bad_image);

}  // namespace csml
