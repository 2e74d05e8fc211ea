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
  /// At least bucket_bytes each, but for the one with the first parameters. 0: an eighth of the gradient, at most 8
  /// MiB, so that small networks too have something to reduce while backward goes on.
  GradientBuckets(const Params& params, Comm& comm, int64_t bucket_bytes = 0);

  /// Which of an optimizer step's backward passes this is: their gradients add up, and the last one is what reductions
  /// run beside.
  struct Pass {
    bool first = true, last = true;
  };
  /// loss.backward(seed). After the last pass grad() is the mean over all processes, zero where no gradient came.
  void backward(const Var& loss, const Tensor& seed = {}) { backward(loss, seed, {true, true}); }
  void backward(const Var& loss, const Tensor& seed, Pass pass);

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
