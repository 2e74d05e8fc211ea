// csml bench --step: whole training steps, supervised and of a method.
#include <algorithm>
#include <optional>
#include <utility>

#include "apps/bench.h"
#include "apps/config.h"
#include "csml/method/siamese.h"
#include "data/shuffle.h"
#include "engine/buckets.h"
#include "engine/comm_rehearsal.h"
#include "engine/optim.h"
#include "engine/precision.h"
#include "engine/step.h"

namespace csml {
namespace {

constexpr float kLearningRate = 0.03f;

Tensor noise_images(Device& device, int64_t batch, int64_t size, int64_t channels, int64_t offset) {
  const Shape shape{batch, size, size, channels};
  return Tensor::from(device, shape, bench_noise(shape.size(), offset));
}

/// One supervised step of a ResNet: forward, cross entropy, backward, SGD with momentum, running statistics. In 16 bits
/// what PyTorch's autocast does, and in fp16 its gradient scaler: images, activations and the weights of convolutions
/// and of the linear layer are in that type; batch norm's statistics and parameters, the bias, the loss, the master
/// weights, their gradients and SGD are f32. A step whose scaled gradient overflows changes nothing but the scale.
class SupervisedStep final : public BenchWork {
 public:
  /// With a communicator: gradients are reduced in buckets of at least bucket_bytes during backward.
  SupervisedStep(Device& device, const WorkOptions& options, Comm* comm = nullptr, int64_t bucket_bytes = 0)
      : SupervisedStep(device, options.name,
                       {.depth = is_small(options) ? 18 : 50,
                        .cifar_stem = options.name == "resnet18_cifar",
                        .width = 64,
                        .in_channels = 3},
                       is_small(options) ? 32 : 224, is_small(options) ? 10 : 1000,
                       options.batch ? options.batch : (is_small(options) ? 64 : 16), bench_precision(options)) {
    if (comm) buckets_.emplace(params_, *comm, bucket_bytes);
  }
  SupervisedStep(Device& device, const std::string& name, const ResNetOptions& network, int64_t size, int64_t classes,
                 int64_t batch, const std::string& precision)
      : name_(name),
        precision_(precision),
        network_(network),
        batch_(batch),
        params_(device),
        trunk_(params_, network),
        head_(params_, "fc", trunk_.feature_dim(), classes),
        loss_scale_(device, compute_type(precision, device), {}),
        finite_(Tensor::from(device, {1}, std::vector<int32_t>{1})),
        step_(device, [this] { run_once(); }) {
    params_.build(0, true, compute_type(precision, device));
    optimizer_ = Optimizer::make(params_, {.kind = "sgd", .momentum = kMomentum, .weight_decay = kWeightDecay});
    Random random(0, Purpose::test);
    std::vector<int32_t> classes_of(static_cast<size_t>(batch));
    for (int32_t& c : classes_of) c = static_cast<int32_t>(random.below(static_cast<uint32_t>(classes)));
    images_ = noise_images(device, batch, size, network.in_channels, 0);
    labels_ = Tensor::from(device, {batch}, classes_of);
    learning_rate_ = Tensor::full(device, {1}, kLearningRate);
    statistics_momentum_ = Tensor::full(device, {1}, 0.9f);
    loss_ = Tensor::full(device, {1}, 0.f);
    statistics_ = like(params_.buffers());
  }

  void run() override { step_.run(); }
  void put_inputs(Exchange& exchange) override {
    exchange.note("learning_rate", kLearningRate);
    exchange.note("momentum", kMomentum);
    exchange.note("weight_decay", kWeightDecay);
    exchange.put("images", images_);
    exchange.put("labels", labels_);
    exchange.put("before/", params_);
  }
  bool put_results(Exchange& exchange) override {
    const int64_t skipped = loss_scale_.read().skipped;
    if (std::exchange(skipped_, skipped) < skipped) return false;
    exchange.put("loss", loss_);
    exchange.put("buffer/", params_, optimizer_->state().at(0).second);
    exchange.put("after/", params_);
    return true;
  }
  int64_t images() const override { return batch_; }
  const Params& params() const { return params_; }
  size_t bucket_count() const { return buckets_ ? buckets_->count() : 0; }
  int64_t calls() const override { return step_.calls(); }
  nlohmann::json about() const override {
    return {{"case", name_},           {"batch", batch_},         {"precision", precision_},
            {"depth", network_.depth}, {"width", network_.width}, {"stem", network_.cifar_stem ? "cifar" : "imagenet"}};
  }

 private:
  static constexpr float kMomentum = 0.9f, kWeightDecay = 1e-4f;

  static bool is_small(const WorkOptions& options) { return options.name != "resnet50"; }
  void run_once() {
    const Var x = cast(Var(images_), params_.compute_type());
    const Stages stages = trunk_(x, {.training = true, .groups = 1, .statistics = statistics_});
    const Var loss = cross_entropy(head_(stages.pooled), labels_);
    copy(loss.value(), loss_);
    if (buckets_) {
      buckets_->backward(loss, loss_scale_.seed());
    } else {
      params_.begin_gradients();
      loss.backward(loss_scale_.seed());
      params_.finish_gradients();
    }
    if (loss_scale_) all_finite(params_.grad(), finite_);  // elsewhere PyTorch does not look either
    optimizer_->step({.learning_rate = learning_rate_, .finite = finite_, .inverse_scale = loss_scale_.inverse()});
    ema(statistics_, params_.buffers(), statistics_momentum_, finite_);
    loss_scale_.update(finite_);
  }

  const std::string name_, precision_;
  const ResNetOptions network_;
  const int64_t batch_;
  Params params_;
  ResNet trunk_;
  Linear head_;
  std::optional<GradientBuckets> buckets_;
  std::unique_ptr<Optimizer> optimizer_;
  LossScale loss_scale_;
  Tensor images_, labels_, learning_rate_, statistics_momentum_, loss_, statistics_, finite_;
  int64_t skipped_ = 0;  // steps of fp16 that overflowed
  Step step_;
};

/// One pretraining step of a method, on one batch that is used again and again: no loader in the time.
class MethodStep : public BenchWork {
 public:
  MethodStep(Device& device, const WorkOptions& options, const Config& config, int channels)
      : options_(options),
        config_(config),
        method_(device, config, channels, plan_of(config)),
        step_(device, [this] { method_.step(); }) {}

  int64_t images() const override { return config_.train.batch_size; }
  int64_t calls() const override { return step_.calls(); }
  nlohmann::json about() const override {
    return {{"case", options_.name},
            {"preset", options_.preset},
            {"batch", config_.train.batch_size},
            {"bn_group_size", config_.method.bn_group_size},
            {"precision", config_.train.precision}};
  }

 protected:
  const WorkOptions options_;
  const Config config_;
  Siamese method_;
  Step step_;
};

/// On crops of a data set, uploaded and augmented in every step, as training does.
class TrainingStep final : public MethodStep {
 public:
  TrainingStep(Device& device, const WorkOptions& options, const Config& config, const Dataset& data)
      : MethodStep(device, options, config, data.channels()) {
    LoaderOptions loader_options;
    loader_options.workers = 0;
    loader_options.batch_size = config.train.batch_size;
    Loader loader(data, method_.views(), loader_options);
    auto table = std::make_shared<NeighborTable>();
    table->k = 1;
    for (int64_t i = 0; i < data.size(); ++i) table->index.push_back(static_cast<int32_t>((i + 1) % data.size()));
    loader.start_epoch(0, 0, table);
    if (!loader.next(batch_))
      throw UsageError(cat("--batch {} is larger than {}", config.train.batch_size, data.describe()));
  }

  void run() override {
    method_.load(batch_, {});
    step_.run();
  }
  void put_inputs(Exchange&) override { throw UsageError("--exchange of a method needs --given"); }
  bool put_results(Exchange&) override { return false; }
  nlohmann::json about() const override {
    nlohmann::json json = MethodStep::about();
    json["data"] = options_.data;
    return json;
  }

 private:
  Batch batch_;
};

/// On normalised images that are on the device already: what bench/pytorch does.
class GivenStep final : public MethodStep {
 public:
  GivenStep(Device& device, const WorkOptions& options, const Config& config)
      : MethodStep(device, options, config, config.augment.channels) {
    const int64_t batch = config.train.batch_size;
    const int side = config.augment.crop_size;
    for (const ViewSpec& view : method_.views())
      given_.images.push_back(noise_images(device, batch, view.augment.crop_size, config.augment.channels,
                                           static_cast<int64_t>(given_.images.size())));
    for (uint32_t key = 0; key < 2; ++key)
      given_.permutations.push_back(shuffle_permutation(config.train.seed, 0, key, batch, batch));
    given_.box = {side / 8, side / 4, side / 8 + side / 2, side / 4 + side / 2};
    given_.lambda = 1 - static_cast<float>(side / 2 * (side / 2)) / static_cast<float>(side * side);
    given_.weights = {0.5f, 0.5f};
    given_.learning_rate = kLearningRate;
    method_.load_given(given_);
  }

  void run() override { step_.run(); }
  void put_inputs(Exchange& exchange) override {
    const MethodConfig& m = config_.method;
    const bool plain = (m.name == "moco" || (m.name == "csml" && m.base == "moco")) && m.directions == 1 &&
                       m.levels == std::vector<std::string>{"res5"} && m.crop_sizes.empty() && m.form == "csml" &&
                       m.queue_filter == 1 && m.terms.size() == 3 && config_.optimizer.kind == "sgd";
    if (!plain)
      throw UsageError("--exchange knows moco, and csml over moco with one level, three terms, one crop and SGD");
    if (m.bn_group_size != 0 && m.bn_group_size != config_.train.batch_size)
      throw UsageError("--exchange needs batch norm over the whole batch: --set method.bn_group_size=0");
    exchange.note("depth", config_.model.depth);
    exchange.note("width", config_.model.width);
    exchange.note("stem", config_.model.stem);
    exchange.note("dim", config_.model.dim);
    exchange.note("temperature", m.temperature);
    exchange.note("key_momentum", m.momentum);
    exchange.note("lambda", given_.lambda);
    exchange.note("learning_rate", given_.learning_rate);
    exchange.note("momentum", config_.optimizer.momentum);
    exchange.note("weight_decay", config_.optimizer.weight_decay);
    for (size_t v = 0; v < given_.images.size(); ++v) exchange.put(cat("view.{}", v), given_.images[v]);
    for (size_t p = 0; p < given_.permutations.size(); ++p) {
      const std::vector<int32_t>& permutation = given_.permutations[p];
      exchange.put(cat("permutation.{}", p),
                   Tensor::from(given_.images[0].device(), {static_cast<int64_t>(permutation.size())}, permutation));
    }
    Device& device = given_.images[0].device();
    exchange.put("box", Tensor::from(device, {4}, std::span<const int32_t>(given_.box)));
    exchange.put("weights", Tensor::from(device, {2}, given_.weights));
    exchange.put("queue", method_.queue().rows());
    exchange.put("before/", method_.query_encoder().params());  // the momentum encoder starts as a copy
  }
  bool put_results(Exchange& exchange) override {
    const nlohmann::json measured = method_.measure(1);
    Tensor buffer;
    for (const auto& [name, tensor] : method_.state())
      if (name == "optimizer.momentum") buffer = tensor;
    const std::vector<float> values = buffer.host<float>();
    // A step that changed something left gradients in the momentum buffer.
    if (std::all_of(values.begin(), values.end(), [](float x) { return x == 0; })) return false;
    Device& device = given_.images[0].device();
    exchange.put("loss", Tensor::full(device, {1}, measured["loss"].get<float>()));
    exchange.put("buffer/", method_.query_encoder().params(), buffer);
    exchange.put("after/", method_.query_encoder().params());
    exchange.put("key/", method_.key_encoder().params());
    exchange.put("keys", method_.queue().rows().rows(0, config_.train.batch_size));
    return true;
  }
  nlohmann::json about() const override {
    nlohmann::json json = MethodStep::about();
    json["data"] = "given";
    return json;
  }

 private:
  Siamese::Given given_;
};

/// A pretraining configuration: a preset, then --set, then the options that have their own name.
Config recipe(const WorkOptions& o, int channels) {
  ConfigBuilder builder;
  builder.add_preset(o.preset);
  builder.set("method.name", o.name, "--step");
  for (const std::string& assignment : o.set) builder.set_assignment(assignment);
  if (o.batch) builder.set("train.batch_size", std::to_string(o.batch), "--batch");
  if (!o.precision.empty()) builder.set("train.precision", o.precision, "--precision");
  Config config = builder.build().config;
  config.augment.channels = channels;
  return config;
}

}  // namespace

std::vector<float> bench_noise(int64_t count, int64_t offset) {
  constexpr int64_t kPeriod = 1048573;  // prime: no image's size divides it
  static const std::vector<float> values = [] {
    std::vector<float> made(kPeriod);
    Random random(0, Purpose::test, 1);
    for (float& x : made) x = random.normal();
    return made;
  }();
  std::vector<float> out(static_cast<size_t>(count));
  int64_t at = 7919 * offset % kPeriod;
  for (float& x : out) {
    x = values[static_cast<size_t>(at)];
    if (++at == kPeriod) at = 0;
  }
  return out;
}

std::unique_ptr<BenchWork> make_step(Device& device, const WorkOptions& o) {
  if (o.name == "moco" || o.name == "csml") {
    if (o.given) return std::make_unique<GivenStep>(device, o, recipe(o, 3));
    const auto data = open_dataset(o.data);
    return std::make_unique<TrainingStep>(device, o, recipe(o, data->channels()), *data);
  }
  return std::make_unique<SupervisedStep>(device, o);
}

nlohmann::json bench_buckets(Device& device, const WorkOptions& o, const BenchOptions& bench, const Timing& without) {
  const auto comm = rehearsal(device);
  SupervisedStep step(device, o, comm.get(), static_cast<int64_t>(o.buckets * 1048576));
  const Timing with = measure(bench, device, [&] { step.run(); });
  const Tensor& grad = step.params().grad();
  const Timing alone = measure(bench, device, [&] { comm->all_reduce_mean(grad); });
  const double exposed = std::max(0.0, with.ms - without.ms);
  return {{"mib", o.buckets},      {"count", step.bucket_count()},       {"gradient_bytes", grad.bytes()},
          {"ms", with.ms},         {"ms_without", without.ms},           {"copies_alone_ms", alone.ms},
          {"exposed_ms", exposed}, {"exposed_share", exposed / alone.ms}};
}

}  // namespace csml
