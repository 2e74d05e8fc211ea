// Trains a small ResNet with labels and tells its accuracy after each epoch.
//
//   supervised TRAIN TEST [EPOCHS]       e.g. F=idx:/usr/share/datasets/fashion-mnist
//                                             supervised "$F?channels=1" "$F?channels=1&split=test" 5
//
// TRAIN and TEST are data sets as csml names them (data/dataset.h): cifar10:DIR, idx:DIR, folder:DIR?size=32, …
// All images must have the same size, a multiple of 4.
#include <cstdio>

#include "csml/evaluation/features.h"
#include "csml/method/views.h"
#include "data/loader.h"
#include "engine/step.h"
#include "engine/update.h"
#include "models/resnet.h"

using namespace csml;

/// A ResNet-18 with a quarter of the channels, for small images, and a linear classifier. Constructed layers register
/// their parameters; build() then allocates them in flat buffers and draws their first values.
struct Network {
  Params params;
  ResNet trunk;
  Linear head;

  Network(Device& device, int channels, int classes)
      : params(device),
        trunk(params, {.depth = 18, .cifar_stem = true, .width = 16, .in_channels = channels}),
        head(params, "fc", trunk.feature_dim(), classes) {
    params.build(/*seed=*/0, /*trainable=*/true);
  }
  /// images [N,S,S,C] -> logits [N,classes]
  Var operator()(const Tensor& images, const Forward& forward) const {
    return head(trunk(Var(images), forward).pooled);
  }
};

/// Share of the images whose largest logit is that of their class. The images come un-augmented, in inference mode.
float accuracy(Device& device, const Network& net, const Dataset& data, const FeatureOptions& options) {
  const auto logits = [&](const Tensor& images) { return net(images, Forward::inference()).value(); };
  const Features all = extract_features(device, data.class_count(), logits, data, options);
  const Tensor labels = Tensor::from(device, {data.size()}, std::vector<int32_t>(all.labels.begin(), all.labels.end()));
  Tensor correct;
  cross_entropy(Var(all.values), labels, &correct);
  return correct.item() / static_cast<float>(data.size());
}

int run(const std::string& train_spec, const std::string& test_spec, int epochs) {
  const auto device = Device::open("auto");  // the best card, else the CPU
  const auto train = open_dataset(train_spec), test = open_dataset(test_spec);
  const int batch = 64, size = train->load(0).width();

  // What a training image goes through: a random crop of at least half its area and a flip, no change of colour.
  ViewSpec view;
  view.augment = {.crop_size = size, .scale_min = 0.5f, .jitter_p = 0, .gray_p = 0, .blur_p = 0};
  view.augment.channels = train->channels();
  LoaderOptions loading;  // two threads, seed 0
  loading.batch_size = batch;
  Loader loader(*train, {view}, loading);
  FeatureOptions plain;
  plain.transform = {.resize = 0, .size = size};  // as they are
  plain.l2_normalise = false;

  Network net(*device, train->channels(), train->class_count());
  Update update(net.params, {.kind = "sgd", .momentum = 0.9f, .weight_decay = 5e-4f});
  ScheduleOptions schedule;  // falls along a cosine
  schedule.base_lr = 0.05;
  schedule.epochs = epochs;

  // What a step reads and writes lives in tensors that stay; the rest of it is recorded once and replayed.
  ViewInput input(*device, batch, view);
  const Tensor labels(*device, {batch}, DType::i32), loss_sum = Tensor::full(*device, {1}, 0);
  Step step(*device, [&] {
    const Var loss = cross_entropy(net(input.images(), update.forward()), labels);
    update(loss);
    accumulate(loss.value(), loss_sum);
  });

  Batch images;
  for (int epoch = 0; epoch < epochs; ++epoch) {
    const auto steps = static_cast<double>(loader.batches_per_epoch());
    fill(loss_sum, 0);
    for (loader.start_epoch(epoch); loader.next(images);) {
      update.set_learning_rate(learning_rate(schedule, epoch + static_cast<double>(images.index) / steps));
      input.upload(images.views[0]);
      labels.upload(std::vector<int32_t>(images.labels.begin(), images.labels.end()));
      step.run();
    }
    std::printf("epoch %d: loss %.3f, test accuracy %.1f %%\n", epoch + 1, loss_sum.item() / steps,
                100 * accuracy(*device, net, *test, plain));
    std::fflush(stdout);
  }
  return 0;
}

int main(int argc, char** argv) {
  if (argc < 3) return std::fprintf(stderr, "usage: supervised TRAIN TEST [EPOCHS]\n"), 2;
  try {
    return run(argv[1], argv[2], argc > 3 ? std::stoi(argv[3]) : 5);
  } catch (const std::exception& e) { return std::fprintf(stderr, "supervised: %s\n", e.what()), 1; }
}
