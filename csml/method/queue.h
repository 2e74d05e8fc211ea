// Queue: MoCo's ring of past keys, of any size, with its age for the log.
#pragma once

#include "engine/ops.h"

namespace csml {

class Queue {
 public:
  /// K unit rows of N(0,1) draws keyed by (seed, level), as MoCo starts it.
  Queue(Device& device, int64_t rows, int64_t dim, uint64_t seed, uint32_t level);

  const Tensor& rows() const { return rows_; }
  const Tensor& cursor() const { return cursor_; }
  /// Replaces the oldest rows by `keys` [B, dim]; part of the commit.
  void push(const Tensor& keys, const Tensor& finite) const { ring_write(keys, rows_, cursor_, finite); }

 private:
  Tensor rows_, cursor_;
};

}  // namespace csml
