// Gradient buckets: a network's gradients averaged over processes while the backward pass that makes them goes on.
#pragma once

#include <functional>
#include <unordered_map>
#include <vector>

#include "engine/comm.h"
#include "engine/params.h"

namespace csml {

/// Spans of a Params' flat gradient, last parameters first (backward finishes those first). A bucket's reduction starts
/// when the last of its leaves is finished.
class GradientBuckets {
 public:
  /// At least bucket_bytes each, but for the one with the first parameters.
  GradientBuckets(const Params& params, Comm& comm, int64_t bucket_bytes = 8 << 20);

  /// loss.backward(seed) for the whole optimizer step: afterwards grad() is the mean over all processes, zero where no
  /// gradient came.
  void backward(const Var& loss, const Tensor& seed = {});

  size_t count() const { return buckets_.size(); }

 private:
  struct Bucket {
    Tensor grad;
    int leaves = 0, missing = 0;
  };

  /// Tells the device's timeline, if there is one, in the order of the calls around it.
  void mark(const std::function<void(Timeline&)>& what) const;
  void reduce(const Bucket& bucket) const;

  const Params& params_;
  Comm& comm_;
  std::vector<Bucket> buckets_;
  std::unordered_map<const void*, size_t> bucket_of_;  // by leaf
};

}  // namespace csml
