// A method of one's own outside csml's tree: SimSiam (Chen & He 2021, "Exploring Simple Siamese Representation
// Learning"), on the engine's ops and a loop of its own.
//
//   simsiam TRAIN TEST [EPOCHS]          data sets as csml names them (data/dataset.h), images of the same size
//
// Two views x1, x2 of each image; f = projector after ResNet, h = predictor, z = f(x), p = h(z):
//   L = 1/2 D(p1, stopgrad(z2)) + 1/2 D(p2, stopgrad(z1)),   D(p, z) = - p.z / (|p| |z|)
#include <cmath>
#include <cstdio>

#include "csml/evaluation/probe_knn.h"
#include "csml/method/views.h"
#include "data/loader.h"
#include "engine/step.h"
#include "engine/update.h"
#include "models/projector.h"
#include "models/resnet.h"

using namespace csml;

struct Network {
  Params params;
  ResNet trunk;
  Projector projector, predictor;

  Network(Device& device, int channels)
      : params(device),
        trunk(params, {.depth = 18, .cifar_stem = true, .width = 16, .in_channels = channels}),
        projector(params, {.in = trunk.feature_dim(), .hidden = 256, .out = 256, .norm = ProjectorOptions::Norm::all},
                  "projector"),
        predictor(params, {.in = 256, .hidden = 64, .out = 256, .norm = ProjectorOptions::Norm::hidden}, "predictor") {
    params.build(/*seed=*/0, /*trainable=*/true);
  }
};

/// An op of one's own: the mean of all elements, -> scalar [1]. The forward call, then the backward lambda: it gets the
/// gradient of the output and, per input, where that input's gradient goes (engine/var.h).
Var mean(const Var& x) {
  const Tensor& value = x.value();
  const float share = 1.f / static_cast<float>(value.size());
  const Tensor ones = Tensor::full(value.device(), {1, value.size()}, 1);
  const Tensor sum = linear(Var(value.reshape({1, value.size()})), Var(ones), {}).value().reshape({1});
  return scale(Var::op("sum", sum, {x},
                       [shape = value.shape(), ones](const Tensor& dy, std::span<const Sink> dx) {
                         if (!dx[0]) return;
                         if (dx[0].write == Write::overwrite) fill(dx[0].tensor, 0);
                         accumulate(ones.reshape(shape), dx[0].tensor, 1, dy);  // += 1 * dy[0]
                       }),
               share);
}

/// D(p, stopgrad(z)), the mean over the rows of p and z [N,D].
Var distance(const Var& p, const Tensor& z) {
  return scale(mean(row_dots(l2_normalize(p), {l2_normalize(Var(z))})), -1);
}

/// Percent of TEST that the k nearest features of TRAIN (k = 20) classify well.
double knn(Device& device, const Network& net, const Dataset& train, const Dataset& test, const FeatureOptions& o) {
  const auto embed = [&](const Tensor& images) { return net.trunk(Var(images), Forward::inference()).pooled.value(); };
  const int64_t dim = net.trunk.feature_dim();
  return knn_classify(extract_features(device, dim, embed, train, o), extract_features(device, dim, embed, test, o),
                      train.class_count(), {20}, /*temperature=*/0.07)[0]
      .top1;
}

int run(const std::string& train_spec, const std::string& test_spec, int epochs) {
  const auto device = Device::open("auto");
  const auto train = open_dataset(train_spec), test = open_dataset(test_spec);
  const int batch = 64, size = train->load(0).width();
  std::vector<ViewSpec> views(2);
  for (uint32_t i = 0; i < 2; ++i) {
    views[i].augment = {.crop_size = size, .scale_min = 0.3f, .blur_p = 0, .channels = train->channels()};
    views[i].number = i;  // its own draws
  }
  LoaderOptions loading;  // two threads, seed 0
  loading.batch_size = batch;
  Loader loader(*train, views, loading);
  FeatureOptions plain;
  plain.transform = {.resize = 0, .size = size};

  Network net(*device, train->channels());
  Update update(net.params, {.kind = "sgd", .momentum = 0.9f, .weight_decay = 1e-4f});
  ScheduleOptions schedule;  // falls along a cosine
  schedule.base_lr = 0.05;
  schedule.epochs = epochs;
  ViewInput first(*device, batch, views[0]), second(*device, batch, views[1]);
  const Tensor loss_sum = Tensor::full(*device, {1}, 0), length_sum = Tensor::full(*device, {1}, 0);
  Step step(*device, [&] {
    // Both views in one pass, as two batch-norm groups: each view is normalised by its own statistics.
    const Forward forward = update.forward(/*groups=*/2);
    const Var images = concat_rows({Var(first.images()), Var(second.images())});
    const Var z = net.projector(net.trunk(images, forward).pooled, forward), p = net.predictor(z, forward);
    // z of the other view under each p, without gradient: that is stopgrad.
    const Tensor z1 = z.value().rows(0, batch), z2 = z.value().rows(batch, batch);
    const Var loss = distance(p, concat_rows({Var(z2), Var(z1)}).value());
    update(loss);
    accumulate(loss.value(), loss_sum);
    // Collapse shows here: the mean of unit vectors z / |z| has length 1 when all are the same, about 0 when they spread.
    const Tensor unit = l2_normalize(Var(z1)).value();
    accumulate(mean(linear(Var(unit), Var(unit), {})).value(), length_sum);
  });

  std::printf("untrained: k-NN %.1f %%\n", knn(*device, net, *train, *test, plain));
  Batch images;
  for (int epoch = 0; epoch < epochs; ++epoch) {
    const auto steps = static_cast<double>(loader.batches_per_epoch());
    fill(loss_sum, 0), fill(length_sum, 0);
    for (loader.start_epoch(epoch); loader.next(images);) {
      update.set_learning_rate(learning_rate(schedule, epoch + static_cast<double>(images.index) / steps));
      first.upload(images.views[0]);
      second.upload(images.views[1]);
      step.run();
    }
    std::printf("epoch %d: loss %.3f, |mean z| %.2f, k-NN %.1f %%\n", epoch + 1, loss_sum.item() / steps,
                std::sqrt(std::max(0.0, length_sum.item() / steps)), knn(*device, net, *train, *test, plain));
    std::fflush(stdout);
  }
  return 0;
}

int main(int argc, char** argv) {
  if (argc < 3) return std::fprintf(stderr, "usage: simsiam TRAIN TEST [EPOCHS]\n"), 2;
  try {
    return run(argv[1], argv[2], argc > 3 ? std::stoi(argv[3]) : 20);
  } catch (const std::exception& e) { return std::fprintf(stderr, "simsiam: %s\n", e.what()), 1; }
}
