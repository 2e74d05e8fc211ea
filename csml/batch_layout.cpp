#include "csml/batch_layout.h"

namespace csml {

BatchLayout batch_layout(const Config& config, const Comm& comm) {
  const int64_t size = comm.size();
  BatchLayout l;
  l.global = config.train.batch_size;
  l.local = l.global / size;
  l.first = l.local * comm.rank();
  l.span = config.method.shuffle_span > 0 ? config.method.shuffle_span : l.global;
  if (l.local * size != l.global)
    throw UsageError(
        cat("train.batch_size = {} (of all processes together) does not divide by {} processes", l.global, size));
  const int64_t group = config.method.bn_group_size > 0 ? config.method.bn_group_size : l.global;
  if (l.local % group != 0)
    throw UsageError(cat(
        "a batch-norm group of {} images must lie inside one process, and each of {} processes has {} of {} images: "
        "start at most {} processes, or change train.batch_size or method.bn_group_size (now {})",
        group, size, l.local, l.global, l.global / group, config.method.bn_group_size));
  l.loader_shuffles = config.method.shuffle && l.local % l.span != 0;
  return l;
}

LoaderOptions training_loader_options(const Config& config, const Comm& comm, BadImageCallback on_bad_image) {
  const BatchLayout layout = batch_layout(config, comm);
  LoaderOptions o;
  o.seed = config.train.seed;
  o.workers = config.data.workers;
  o.batch_size = static_cast<int>(layout.local);
  o.rank = comm.rank();
  o.ranks = comm.size();
  o.shuffle_span = layout.loader_shuffles ? layout.span : 0;
  o.prefetch = config.data.prefetch;
  o.max_bad_share = config.data.max_bad_share;
  o.on_bad_image = std::move(on_bad_image);
  return o;
}

}  // namespace csml
