#include "csml/evaluation/features.h"

#include <algorithm>
#include <cmath>

namespace csml {

Features extract_features(Device& device, int64_t dim, const std::function<Tensor(const Tensor& images)>& embed,
                          const Dataset& dataset, const FeatureOptions& o) {
  const NoGrad no_grad;
  const int64_t n = dataset.size(), size = o.transform.size, channels = dataset.channels();
  CHECK(n > 0, "the data set is empty: {}", dataset.describe());
  LoaderOptions loader_options;
  loader_options.workers = o.workers;
  loader_options.batch_size = o.batch_size;
  loader_options.max_bad_share = o.max_bad_share;
  loader_options.on_bad_image = o.on_bad_image;
  loader_options.rank = o.comm->rank();
  loader_options.ranks = o.comm->size();
  EvalLoader loader(dataset, o.transform, loader_options);
  loader.start();
  const int64_t each = loader.share();
  const Tensor all(device, {each * o.comm->size(), dim}, o.dtype), mine = all.rows(each * o.comm->rank(), each);
  Features out{.values = all.rows(0, n), .labels = {}, .bad_images = 0};
  for (int64_t i = 0; i < n; ++i) out.labels.push_back(dataset.label(i));
  EvalBatch batch;
  for (int64_t round = 0; round < each / o.batch_size; ++round) {
    if (o.go_on && !o.go_on()) throw Interrupted();
    if (!loader.next(batch)) continue;  // this process's share is shorter
    const Shape shape{batch.count, size, size, channels};
    Tensor pixels(device, shape, DType::u8), images(device, shape);
    pixels.upload(batch.images);
    augment(pixels, {}, images, o.normalise.mean, o.normalise.std);
    Tensor rows = embed(images);
    if (o.l2_normalise) rows = l2_normalize(Var(rows)).value();
    copy(cast(Var(rows), o.dtype).value(), all.rows(batch.first, batch.count));
    if (o.progress) o.progress(std::min(n, (batch.first % each + batch.count) * o.comm->size()), n);
  }
  o.comm->all_gather(mine, all);
  out.bad_images = loader.bad_images();
  return out;
}

Features extract_features(Device& device, const Encoder& encoder, const Dataset& dataset, const FeatureOptions& o) {
  const int64_t dim = o.projection ? encoder.project_dim() : encoder.feature_dim();
  const auto embed = [&](const Tensor& images) {
    const Var pooled = encoder.trunk(Var(images), Forward::inference()).pooled;
    return o.projection ? encoder.project(pooled).value() : cast(pooled, DType::f32).value();
  };
  return extract_features(device, dim, embed, dataset, o);
}

Features pixel_features(Device& device, const Dataset& dataset, const FeatureOptions& options) {
  // Each channel is standardised by its own mean and deviation over the data set the features are compared with, which
  // the caller puts into options.normalise.
  const int64_t dim = int64_t{options.transform.size} * options.transform.size * dataset.channels();
  const auto flatten = [&](const Tensor& images) { return images.reshape({images.shape()[0], dim}); };
  return extract_features(device, dim, flatten, dataset, options);
}

}  // namespace csml
