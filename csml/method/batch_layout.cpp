#include "csml/method/batch_layout.h"

#include <algorithm>

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
  l.group = config.method.bn_group_size > 0 ? config.method.bn_group_size : l.global;
  const bool spans = config.method.bn_sync && l.group > l.local && l.group % l.local == 0 && l.global % l.group == 0;
  if (l.local % l.group != 0 && !spans)
    throw UsageError(
        cat("a batch-norm group of {} images must lie inside one process{}, and each of {} processes has {} of {} "
            "images: start at most {} processes, change train.batch_size or method.bn_group_size (now {}){}",
            l.group, config.method.bn_sync ? " or be whole processes' shares" : "", size, l.local, l.global,
            l.global / l.group, config.method.bn_group_size,
            config.method.bn_sync ? "" : ", or let groups span processes: method.bn_sync=true"));
  l.parts = config.train.accumulate;
  l.part = l.local / l.parts;
  if (l.part * l.parts != l.local || (l.parts > 1 && l.part % l.group != 0))
    throw UsageError(cat(
        "train.accumulate = {} cuts a process's {} images into parts of {}, which must be whole batch-norm groups of "
        "{} images: at most {} parts",
        l.parts, l.local, l.part, l.group, std::max<int64_t>(1, l.local / l.group)));
  if (spans) l.group_ranks = static_cast<int>(l.group / l.local);
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
