#include "csml/evaluation/finetune.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "csml/method/views.h"
#include "engine/optim.h"
#include "engine/step.h"

namespace csml {

namespace {

constexpr float kStatisticsMomentum = 0.9f;  // old share of the running statistics, PyTorch's momentum 0.1

/// One training step of a classifier on uploaded images.
class Trainer {
 public:
  Trainer(Device& device, Classifier& net, int64_t batch, const ViewSpec& view, const FinetuneOptions& o)
      : net_(net),
        view_(device, batch, view),
        labels_(device, {batch}, DType::i32),
        trunk_rate_(device, {1}),
        head_rate_(device, {1}),
        statistics_(Tensor::full(device, net.trunk().buffers().shape(), 0.f)),
        statistics_momentum_(Tensor::full(device, {1}, kStatisticsMomentum)),
        finite_(device, {1}, DType::i32),
        loss_sum_(Tensor::full(device, {1}, 0.f)),
        correct_sum_(Tensor::full(device, {1}, 0.f)),
        step_(device, [this] { run_once(); }) {
    const OptimizerOptions sgd{.kind = "sgd", .momentum = o.momentum, .weight_decay = o.weight_decay};
    trunk_optimizer_ = Optimizer::make(net.trunk(), sgd);
    head_optimizer_ = Optimizer::make(net.head(), sgd);
  }

  void set_rates(double trunk, double head) {
    trunk_rate_.upload(std::vector<float>{static_cast<float>(trunk)});
    head_rate_.upload(std::vector<float>{static_cast<float>(head)});
  }
  void run(const Batch& batch) {
    view_.upload(batch.views[0]);
    labels_.upload(std::vector<int32_t>(batch.labels.begin(), batch.labels.end()));
    step_.run();
  }
  /// (sum of losses, number of right predictions) since the last call.
  std::pair<double, double> take_sums() {
    const std::pair<double, double> sums{loss_sum_.item(), correct_sum_.item()};
    fill(loss_sum_, 0);
    fill(correct_sum_, 0);
    return sums;
  }

 private:
  void run_once() {
    Tensor correct;
    const Var loss =
        cross_entropy(net_.logits(Var(view_.images()), {.training = true, .groups = 1, .statistics = statistics_}),
                      labels_, &correct);
    accumulate(loss.value(), loss_sum_);
    accumulate(correct, correct_sum_);
    net_.trunk().begin_gradients();
    net_.head().begin_gradients();
    loss.backward();
    net_.trunk().finish_gradients();
    net_.head().finish_gradients();
    all_finite(net_.trunk().grad(), finite_);  // a loss that is not finite reaches every parameter
    trunk_optimizer_->step({.learning_rate = trunk_rate_, .finite = finite_});
    head_optimizer_->step({.learning_rate = head_rate_, .finite = finite_});
    ema(statistics_, net_.trunk().buffers(), statistics_momentum_, finite_);
  }

  Classifier& net_;
  ViewInput view_;
  Tensor labels_, trunk_rate_, head_rate_, statistics_, statistics_momentum_, finite_, loss_sum_, correct_sum_;
  std::unique_ptr<Optimizer> trunk_optimizer_, head_optimizer_;
  Step step_;
};

}  // namespace

FinetuneResult finetune(Device& device, const ModelConfig& model, const Params* start, const Dataset& train,
                        const Dataset* test, const FinetuneOptions& o) {
  CHECK(o.epochs > 0 && o.batch_size > 0, "fine-tuning needs an epoch and a batch");
  CHECK(train.size() > 0 && train.class_count() > 1, "fine-tuning needs labelled images of at least two classes");
  const int64_t batch_size = std::min<int64_t>(o.batch_size, train.size());
  FinetuneResult result;
  result.classifier = std::make_unique<Classifier>(device, model, train.channels(), train.class_count(), o.seed);
  if (start) result.classifier->load_trunk(*start);

  const ViewSpec view{ViewSpec::Source::own, o.augment, 0};
  LoaderOptions loader_options;
  loader_options.seed = o.seed;
  loader_options.workers = o.eval.workers;
  loader_options.batch_size = static_cast<int>(batch_size);
  loader_options.max_bad_share = o.eval.max_bad_share;
  loader_options.on_bad_image = o.eval.on_bad_image;
  Loader loader(train, {view}, loader_options);
  Trainer trainer(device, *result.classifier, batch_size, view, o);
  Batch batch;
  for (int epoch = 0; epoch < o.epochs; ++epoch) {
    FinetuneEpoch line;
    double factor = 1;
    for (double milestone : o.milestones)
      if (epoch >= milestone * o.epochs) factor *= o.decay;
    line.trunk_rate = o.trunk_rate * factor;
    line.head_rate = o.head_rate * factor;
    trainer.set_rates(line.trunk_rate, line.head_rate);
    loader.start_epoch(epoch);
    int64_t steps = 0;
    for (; loader.next(batch); ++steps) trainer.run(batch);
    result.steps += steps;
    const auto [loss, correct] = trainer.take_sums();
    line.epoch = epoch + 1;
    line.step = result.steps;
    line.loss = loss / static_cast<double>(steps);
    line.train_top1 = 100 * correct / static_cast<double>(steps * batch_size);
    if (!std::isfinite(line.loss))
      throw Error(cat("fine-tuning: the loss is not finite in epoch {}; lower the learning rates ({:g} and {:g})",
                      epoch + 1, o.trunk_rate, o.head_rate));
    if (test && ((epoch + 1) % o.eval_every == 0 || epoch + 1 == o.epochs)) {
      const Predictions tested = predict(device, *result.classifier, *test, o.eval);
      line.top1 = result.top1 = tested.top1;
      line.top5 = result.top5 = tested.top5;
      result.bad_images = tested.bad_images;
      if (tested.top1 > result.best_top1) {
        result.best_top1 = tested.top1;
        result.best_epoch = epoch + 1;
      }
    }
    if (o.after_epoch) o.after_epoch(line);
  }
  result.bad_images += loader.bad_images();
  return result;
}

EntropyThreshold choose_threshold(const Predictions& held, const std::vector<int>& labels) {
  CHECK(held.label.size() == labels.size(), "{} predictions for {} labels", held.label.size(), labels.size());
  std::vector<size_t> order(labels.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return held.entropy[a] < held.entropy[b]; });
  EntropyThreshold best;
  best.held = static_cast<int64_t>(labels.size());
  int64_t right = 0, best_gain = 0;
  for (size_t rank = 0; rank < order.size(); ++rank) {
    const size_t i = order[rank];
    right += held.label[i] == labels[i];
    if (rank + 1 < order.size() && held.entropy[order[rank + 1]] == held.entropy[i]) continue;
    const auto taken = static_cast<int64_t>(rank) + 1;
    const int64_t gain = 2 * right - taken;
    if (gain < best_gain || gain <= 0) continue;
    best_gain = gain;
    best.bits = held.entropy[i];
    best.kept = taken;
    best.precision = 100.0 * static_cast<double>(right) / static_cast<double>(taken);
  }
  return best;
}

}  // namespace csml
