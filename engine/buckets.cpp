#include "engine/buckets.h"

#include <algorithm>

#include "engine/timeline.h"

namespace csml {

GradientBuckets::GradientBuckets(const Params& params, Comm& comm, int64_t bucket_bytes)
    : params_(params), comm_(comm) {
  CHECK(params.grad(), "gradient buckets of a network without gradients");
  int64_t end = params.grad().size();
  if (bucket_bytes <= 0) bucket_bytes = std::min<int64_t>(8 << 20, end * static_cast<int64_t>(sizeof(float)) / 8);
  int leaves = 0;
  for (size_t i = params.entries().size(); i-- > 0;) {
    const int64_t begin = params.entries()[i].offset;
    bucket_of_[params.parameter(static_cast<int>(i)).id()] = buckets_.size();
    ++leaves;
    if (i > 0 && (end - begin) * static_cast<int64_t>(sizeof(float)) < bucket_bytes) continue;
    buckets_.push_back({params.grad().span(begin, {end - begin}), leaves, 0});
    end = begin;
    leaves = 0;
  }
}

void GradientBuckets::mark(const std::function<void(Timeline&)>& what) const {
  Device& device = params_.device();
  if (Timeline* timeline = device.timeline()) device.backend().host_call([timeline, what] { what(*timeline); });
}

void GradientBuckets::reduce(const Bucket& bucket) const {
  mark([number = &bucket - buckets_.data(), leaves = bucket.leaves](Timeline& t) {
    t.add(Timeline::Track::buckets, cat("bucket {}: {} leaves", number, leaves), t.now());
  });
  comm_.all_reduce_mean(bucket.grad);
}

void GradientBuckets::backward(const Var& loss, const Tensor& seed, Pass pass) {
  const auto begin = std::make_shared<double>();
  mark([begin](Timeline& t) { *begin = t.now(); });
  if (pass.first) params_.begin_gradients();
  if (!pass.last) return loss.backward(seed);
  for (Bucket& b : buckets_) b.missing = b.leaves;
  comm_.fork();
  loss.backward(seed, [this](const Var& leaf) {
    const auto found = bucket_of_.find(leaf.id());
    if (found == bucket_of_.end()) return;
    Bucket& b = buckets_[found->second];
    if (--b.missing == 0)
      reduce(b);
    else
      comm_.advance();
  });
  params_.finish_gradients();
  for (const Bucket& b : buckets_)
    if (b.missing > 0) reduce(b);  // a leaf that no gradient reached
  comm_.join();
  mark([begin](Timeline& t) { t.add(Timeline::Track::passes, "backward and reductions", *begin); });
}

}  // namespace csml
