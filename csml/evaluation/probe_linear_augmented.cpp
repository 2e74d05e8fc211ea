#include "csml/evaluation/probe_linear_augmented.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <optional>

#include "csml/evaluation/classifier_bank.h"
#include "csml/evaluation/label_split.h"
#include "csml/method/views.h"
#include "data/subset.h"

namespace csml {

namespace {

class Probe {
 public:
  Probe(Device& device, const Encoder& encoder, const Dataset& train, const AugmentedProbeOptions& o)
      : device_(device), encoder_(encoder), o_(o) {
    const std::vector<std::string> names = encoder.block_names();
    if (o.blocks < 1 || o.blocks > static_cast<int>(names.size()))
      throw UsageError(cat("--blocks {}: the network has {} residual blocks", o.blocks, names.size()));
    names_.assign(names.end() - o.blocks, names.end());
    const int channels = train.channels(), size = o.eval.transform.size;
    const std::vector<Tensor> sample = features(Tensor::full(device, {1, size, size, channels}, 0.f));
    for (const Tensor& of_block : sample)
      banks_.push_back(std::make_unique<ClassifierBank>(device, of_block.shape()[1], train.class_count(),
                                                        o.learning_rates, o.momentum, o.weight_decay, o.seed));
  }

  /// Pooled outputs of the last blocks, [N, D] each.
  std::vector<Tensor> features(const Tensor& images) const {
    const NoGrad no_grad;
    std::vector<Var> pooled;
    encoder_.trunk(Var(images), Forward::inference(), &pooled);
    std::vector<Tensor> out;
    for (size_t i = pooled.size() - static_cast<size_t>(o_.blocks); i < pooled.size(); ++i)
      out.push_back(pooled[i].value());
    return out;
  }

  void step(const Tensor& images, const std::vector<int>& labels, double factor) {
    const std::vector<Tensor> of_blocks = features(images);
    for (size_t b = 0; b < banks_.size(); ++b) {
      banks_[b]->set_factor(factor);
      banks_[b]->step(of_blocks[b], banks_[b]->targets(labels));
    }
  }

  /// accuracies[block][rate] on un-augmented images.
  std::vector<std::vector<Accuracy>> evaluate(const Dataset& dataset, int64_t* bad_images) {
    LoaderOptions loader_options;
    loader_options.workers = o_.eval.workers;
    loader_options.batch_size = o_.eval.batch_size;
    loader_options.max_bad_share = o_.eval.max_bad_share;
    loader_options.on_bad_image = o_.eval.on_bad_image;
    EvalLoader loader(dataset, o_.eval.transform, loader_options);
    for (auto& bank : banks_) bank->reset_counts();
    const int64_t size = o_.eval.transform.size;
    const Tensor finite(device_, {1}, DType::i32);
    EvalBatch batch;
    while (loader.next(batch)) {
      const Shape shape{batch.count, size, size, dataset.channels()};
      const Tensor pixels(device_, shape, DType::u8), images(device_, shape);
      pixels.upload(batch.images);
      augment(pixels, {}, images, o_.eval.normalise.mean, o_.eval.normalise.std);
      const std::vector<Tensor> of_blocks = features(images);
      for (size_t b = 0; b < banks_.size(); ++b) {
        all_finite(of_blocks[b], finite);
        CHECK(finite.host<int32_t>()[0], "the features of {} hold NaN or infinity: the encoder has diverged",
              names_[b]);
        banks_[b]->count(of_blocks[b], batch.labels);
      }
    }
    *bad_images = loader.bad_images();
    std::vector<std::vector<Accuracy>> out;
    for (auto& bank : banks_) out.push_back(bank->accuracies());
    return out;
  }

  const std::vector<std::string>& names() const { return names_; }
  int64_t dim(size_t block) const { return banks_[block]->weight(0).shape()[1]; }

 private:
  Device& device_;
  const Encoder& encoder_;
  const AugmentedProbeOptions& o_;
  std::vector<std::string> names_;
  std::vector<std::unique_ptr<ClassifierBank>> banks_;  // one per block
};

}  // namespace

AugmentedProbeResult linear_probe_augmented(Device& device, const Encoder& encoder, const Dataset& train,
                                            const Dataset& test, const AugmentedProbeOptions& o) {
  CHECK(o.epochs > 0 && !o.learning_rates.empty(), "a linear probe needs a learning rate and an epoch");
  std::vector<int64_t> rest(static_cast<size_t>(train.size())), held;
  std::iota(rest.begin(), rest.end(), 0);
  if (o.learning_rates.size() > 1) {
    std::vector<int> labels;
    for (int64_t i = 0; i < train.size(); ++i) labels.push_back(train.label(i));
    const HoldOut split = hold_out(labels, train.class_count(), o.holdout, o.seed);
    CHECK(!split.rest.empty() && !split.held.empty(),
          "too few labelled images ({}) to hold some out for the learning rate", labels.size());
    rest.assign(split.rest.begin(), split.rest.end());
    held.assign(split.held.begin(), split.held.end());
  }
  const Subset seen(train, rest), held_out(train, held);

  Probe probe(device, encoder, train, o);
  const ViewSpec view{ViewSpec::Source::own, o.augment, 0};
  const auto batch_size = static_cast<int>(std::min<int64_t>(o.batch_size, seen.size()));
  LoaderOptions loader_options;
  loader_options.seed = o.seed;
  loader_options.workers = o.eval.workers;
  loader_options.batch_size = batch_size;
  loader_options.max_bad_share = o.eval.max_bad_share;
  loader_options.on_bad_image = o.eval.on_bad_image;
  Loader loader(seen, {view}, loader_options);
  ViewInput input(device, batch_size, view);

  AugmentedProbeResult result;
  result.train_images = seen.size();
  const size_t blocks = probe.names().size(), rates = o.learning_rates.size();
  std::vector<std::vector<Accuracy>> last;
  std::vector<std::vector<std::pair<double, int>>> best(blocks, std::vector<std::pair<double, int>>(rates, {-1, 0}));
  const int64_t total = int64_t{o.epochs} * loader.batches_per_epoch();
  int64_t done = 0;
  double shown = -1;
  Batch batch;
  for (int epoch = 0; epoch < o.epochs; ++epoch) {
    double factor = 1;
    for (double milestone : o.milestones)
      if (epoch >= milestone * o.epochs) factor *= 0.1;
    loader.start_epoch(epoch);
    while (loader.next(batch)) {
      input.upload(batch.views[0]);
      probe.step(input.images(), batch.labels, factor);
      if (o.progress) o.progress(++done, total, shown);
    }
    if ((epoch + 1) % o.eval_every != 0 && epoch + 1 != o.epochs) continue;
    last = probe.evaluate(test, &result.bad_images);
    for (size_t b = 0; b < blocks; ++b)
      for (size_t r = 0; r < rates; ++r)
        if (last[b][r].top1 > best[b][r].first) best[b][r] = {last[b][r].top1, epoch + 1};
    shown = last.back()[0].top1;
  }
  result.bad_images += loader.bad_images();

  std::vector<std::vector<Accuracy>> on_held;
  int64_t ignored = 0;  // those were met in training or not at all
  if (rates > 1) on_held = probe.evaluate(held_out, &ignored);
  for (size_t b = 0; b < blocks; ++b) {
    ProbedBlock block;
    block.name = probe.names()[b];
    block.dim = probe.dim(b);
    size_t chosen = 0;
    if (rates > 1)
      for (size_t r = 0; r < rates; ++r) {
        block.rate_top1.emplace_back(o.learning_rates[r], on_held[b][r].top1);
        if (on_held[b][r].top1 > on_held[b][chosen].top1) chosen = r;
      }
    block.learning_rate = o.learning_rates[chosen];
    block.top1 = last[b][chosen].top1;
    block.top5 = last[b][chosen].top5;
    block.best_top1 = best[b][chosen].first;
    block.best_epoch = best[b][chosen].second;
    result.blocks.push_back(block);
  }
  return result;
}

}  // namespace csml
