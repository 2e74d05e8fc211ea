#include "csml/evaluation/classifier.h"

#include <algorithm>
#include <cmath>

#include "csml/evaluation/accuracy.h"
#include "models/weights.h"

namespace csml {

namespace {

constexpr uint64_t kHeadSeed = 0x68656164;  // keeps the head's draws apart from the trunk's

Linear make_head(Params& params, int64_t features, int classes) { return Linear(params, "fc", features, classes); }

}  // namespace

Classifier::Classifier(Device& device, const ModelConfig& model, int in_channels, int classes, uint64_t seed)
    : trunk_params_(std::make_unique<Params>(device)),
      head_params_(std::make_unique<Params>(device)),
      trunk_(*trunk_params_, resnet_options(model, in_channels)),
      head_(make_head(*head_params_, trunk_.feature_dim(), classes)),
      classes_(classes) {
  trunk_params_->build(seed, true);
  head_params_->build(seed ^ kHeadSeed, true);
}

void Classifier::load_trunk(const Params& encoder) { from_host(*trunk_params_, csml::to_host(encoder, ""), ""); }

Var Classifier::logits(const Var& images, const Forward& forward) const {
  return head_(trunk_(images, forward).pooled);
}

std::vector<NamedArray> Classifier::to_host() const {
  std::vector<NamedArray> arrays = csml::to_host(*trunk_params_, "");
  for (NamedArray& array : csml::to_host(*head_params_, "")) arrays.push_back(std::move(array));
  return arrays;
}

Predictions predict(Device& device, const Classifier& classifier, const Dataset& dataset, const FeatureOptions& o) {
  const NoGrad no_grad;
  LoaderOptions loader_options;
  loader_options.workers = o.workers;
  loader_options.batch_size = o.batch_size;
  loader_options.max_bad_share = o.max_bad_share;
  loader_options.on_bad_image = o.on_bad_image;
  EvalLoader loader(dataset, o.transform, loader_options);
  Predictions out;
  int64_t first = 0, five = 0;
  EvalBatch batch;
  const auto classes = static_cast<size_t>(classifier.classes());
  while (loader.next(batch)) {
    const Shape shape{batch.count, o.transform.size, o.transform.size, dataset.channels()};
    Tensor pixels(device, shape, DType::u8), images(device, shape);
    pixels.upload(batch.images);
    augment(pixels, {}, images, o.normalise.mean, o.normalise.std);
    const std::vector<float> logits = classifier.logits(Var(images), Forward::inference()).value().host<float>();
    for (size_t i = 0; i < static_cast<size_t>(batch.count); ++i) {
      const float* row = logits.data() + i * classes;
      const int best = static_cast<int>(std::max_element(row, row + classes) - row);
      double sum = 0, moment = 0;  // H = log sum exp(x - max) - mean(x - max), in nats
      for (size_t c = 0; c < classes; ++c) {
        const double x = static_cast<double>(row[c]) - row[best], e = std::exp(x);
        sum += e;
        moment += x * e;
      }
      out.label.push_back(best);
      out.entropy.push_back(std::max(0.0, (std::log(sum) - moment / sum) / std::log(2.0)));
      const int truth = batch.labels[i];
      if (truth < 0) continue;
      const int ahead = classes_ahead(row, classifier.classes(), truth);
      first += ahead == 0;
      five += ahead < 5;
    }
    if (o.progress) o.progress(batch.first + batch.count, dataset.size());
  }
  const double n = static_cast<double>(std::max<int64_t>(1, dataset.size()));
  out.top1 = 100.0 * static_cast<double>(first) / n;
  out.top5 = 100.0 * static_cast<double>(five) / n;
  out.bad_images = loader.bad_images();
  return out;
}

}  // namespace csml
