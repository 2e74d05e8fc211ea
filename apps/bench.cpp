// csml bench: time of kernels, of whole training steps and of the loader.
#include "apps/bench.h"

#include <algorithm>
#include <chrono>
#include <ctime>
#include <optional>

#include "apps/command.h"
#include "apps/config.h"
#include "csml/method.h"
#include "csml/probe_knn.h"
#include "csml/views.h"
#include "engine/buckets.h"
#include "engine/comm_rehearsal.h"
#include "engine/layers.h"
#include "engine/log.h"
#include "engine/optim.h"
#include "engine/step.h"
#include "models/resnet.h"

namespace csml {
namespace {

using Clock = std::chrono::steady_clock;
double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

struct Options {
  CommonOptions common;
  BenchOptions bench;
  std::string op, step, loader, device = "auto", data = "synthetic:shapes";
  std::vector<std::string> set;
  std::string preset = "cifar10-small";
  std::vector<int64_t> knn;
  int batch = 0, workers = 0;
  double buckets = 0;  // MiB; 0: no --buckets
  bool cifar = false;
};

/// One supervised step of a ResNet: forward, cross entropy, backward, SGD with momentum, running statistics.
class SupervisedStep {
 public:
  /// With a communicator: gradients are reduced in buckets of at least bucket_bytes during backward.
  SupervisedStep(Device& device, const ResNetOptions& network, int64_t size, int64_t classes, int64_t batch,
                 Comm* comm = nullptr, int64_t bucket_bytes = 0)
      : params_(device),
        trunk_(params_, network),
        head_(params_, "fc", trunk_.feature_dim(), classes),
        step_(device, [this] { run_once(); }) {
    params_.build(0, true);
    if (comm) buckets_.emplace(params_, *comm, bucket_bytes);
    optimizer_ = Optimizer::make(params_, {.kind = "sgd", .momentum = 0.9f, .weight_decay = 1e-4f});
    Random random(0, Purpose::test);
    const Shape shape{batch, size, size, network.in_channels};
    std::vector<float> pixels(static_cast<size_t>(shape.size()));
    for (float& x : pixels) x = random.normal();
    std::vector<int32_t> classes_of(static_cast<size_t>(batch));
    for (int32_t& c : classes_of) c = static_cast<int32_t>(random.below(static_cast<uint32_t>(classes)));
    images_ = Tensor::from(device, shape, pixels);
    labels_ = Tensor::from(device, {batch}, classes_of);
    learning_rate_ = Tensor::full(device, {1}, 0.1f);
    momentum_ = Tensor::full(device, {1}, 0.9f);
    statistics_ = like(params_.buffers());
  }
  void run() { step_.run(); }
  const Params& params() const { return params_; }
  size_t bucket_count() const { return buckets_ ? buckets_->count() : 0; }

 private:
  void run_once() {
    const Stages stages = trunk_(Var(images_), {.training = true, .groups = 1, .statistics = statistics_});
    const Var loss = cross_entropy(head_(stages.pooled), labels_);
    if (buckets_) {
      buckets_->backward(loss);
    } else {
      params_.begin_gradients();
      loss.backward();
      params_.finish_gradients();
    }
    optimizer_->step({.learning_rate = learning_rate_});
    ema(statistics_, params_.buffers(), momentum_);
  }

  Params params_;
  ResNet trunk_;
  Linear head_;
  std::optional<GradientBuckets> buckets_;
  std::unique_ptr<Optimizer> optimizer_;
  Tensor images_, labels_, learning_rate_, momentum_, statistics_;
  Step step_;
};

nlohmann::json rates(const Timing& timing, int64_t batch) {
  nlohmann::json json = timing.json();
  json["batch"] = batch;
  json["threads"] = compute_threads();
  json["images_per_second"] = static_cast<double>(batch) / (timing.ms * 1e-3);
  return json;
}

/// The step with its gradients' reductions replaced by copies of equal bytes: what of their time it does not hide.
nlohmann::json bench_buckets(Device& device, const Options& o, const ResNetOptions& network, int64_t size,
                             int64_t classes, int64_t batch, const Timing& without) {
  const auto comm = rehearsal(device);
  const auto bytes = static_cast<int64_t>(o.buckets * 1048576);
  SupervisedStep step(device, network, size, classes, batch, comm.get(), bytes);
  const Timing with = measure(o.bench, device, [&] { step.run(); });
  const Tensor& grad = step.params().grad();
  const Timing alone = measure(o.bench, device, [&] { comm->all_reduce_mean(grad); });
  const double exposed = std::max(0.0, with.ms - without.ms);
  return {{"mib", o.buckets},      {"count", step.bucket_count()},       {"gradient_bytes", grad.bytes()},
          {"ms", with.ms},         {"ms_without", without.ms},           {"copies_alone_ms", alone.ms},
          {"exposed_ms", exposed}, {"exposed_share", exposed / alone.ms}};
}

nlohmann::json bench_supervised(Device& device, const Options& o) {
  const bool small = o.step != "resnet50";
  const int64_t batch = o.batch ? o.batch : small ? 64 : 16;
  const ResNetOptions network{
      .depth = o.step == "resnet50" ? 50 : 18, .cifar_stem = o.step == "resnet18_cifar", .width = 64, .in_channels = 3};
  const int64_t size = small ? 32 : 224, classes = small ? 10 : 1000;
  SupervisedStep step(device, network, size, classes, batch);
  const Timing timing = measure(o.bench, device, [&] { step.run(); });
  nlohmann::json json = rates(timing, batch);
  json["case"] = o.step;
  if (o.buckets > 0) json["buckets"] = bench_buckets(device, o, network, size, classes, batch, timing);
  return json;
}

/// A pretraining configuration on `data`: a preset, then --set.
Config recipe(const Options& o, const Dataset& data) {
  ConfigBuilder builder;
  builder.add_preset(o.preset);
  if (!o.step.empty()) builder.set("method.name", o.step, "--step");
  for (const std::string& assignment : o.set) builder.set_assignment(assignment);
  if (o.batch) builder.set("train.batch_size", std::to_string(o.batch), "--batch");
  Config config = builder.build().config;
  config.augment.channels = data.channels();
  return config;
}

/// One pretraining step of a method on one batch that is used again and again: no loader in the time.
nlohmann::json bench_method(Device& device, const Options& o) {
  const auto data = open_dataset(o.data);
  const Config config = recipe(o, *data);
  const auto method = make_method(device, config, data->channels());
  LoaderOptions loader_options;
  loader_options.workers = 0;
  loader_options.batch_size = config.train.batch_size;
  Loader loader(*data, method->views(), loader_options);
  auto table = std::make_shared<NeighborTable>();
  table->k = 1;
  for (int64_t i = 0; i < data->size(); ++i) table->index.push_back(static_cast<int32_t>((i + 1) % data->size()));
  loader.start_epoch(0, 0, table);
  Batch batch;
  if (!loader.next(batch))
    throw UsageError(cat("--batch {} is larger than {}", config.train.batch_size, data->describe()));
  Step step(device, [&] { method->step(); });
  const Timing timing = measure(o.bench, device, [&] {
    method->load(batch, {});
    step.run();
  });
  nlohmann::json json = rates(timing, config.train.batch_size);
  json.update({{"case", o.step}, {"preset", o.preset}, {"data", o.data}, {"memory_bytes", device.stats().reserved}});
  return json;
}

/// Two augmented, normalised views of every image, as MoCo's loader makes them: decode and crop in the loader, colour,
/// blur and normalisation by the augment kernel.
nlohmann::json bench_loader(Device& device, const Options& o) {
  const auto data = open_dataset(o.loader);
  AugmentConfig recipe_of_views;  // MoCo v2's, unless --set
  if (!o.set.empty()) {
    ConfigBuilder builder;
    for (const std::string& assignment : o.set) builder.set_assignment(assignment);
    recipe_of_views = builder.build().config.augment;
  }
  recipe_of_views.channels = data->channels();
  LoaderOptions loader_options;
  loader_options.workers = o.workers;
  loader_options.batch_size = o.batch ? o.batch : static_cast<int>(std::min<int64_t>(64, data->size()));
  loader_options.max_bad_share = 1;
  const std::vector<ViewSpec> specs{{ViewSpec::Source::own, recipe_of_views, 0},
                                    {ViewSpec::Source::own, recipe_of_views, 1}};
  Loader loader(*data, specs, loader_options);
  std::vector<ViewInput> inputs;
  for (const ViewSpec& spec : specs) inputs.emplace_back(device, loader_options.batch_size, spec);
  if (loader.batches_per_epoch() == 0)
    throw UsageError(cat("--batch {} is larger than {}", loader_options.batch_size, data->describe()));

  Batch batch;
  int64_t epoch = 0;
  loader.start_epoch(epoch);
  double wait = 0;
  const auto one = [&] {
    if (!loader.next(batch)) {
      loader.start_epoch(++epoch);
      loader.next(batch);
    }
    wait += batch.wait_seconds;
    for (size_t v = 0; v < inputs.size(); ++v) {
      inputs[v].upload(batch.views[v]);
      inputs[v].images();
    }
  };
  one();
  std::vector<double> per_second, per_core_second;
  wait = 0;
  double total = 0;
  for (int w = 0; w < o.bench.windows; ++w) {
    const Clock::time_point start = Clock::now();
    const std::clock_t cpu = std::clock();  // of all threads of the process
    int64_t pairs = 0;
    do {
      one();
      pairs += loader_options.batch_size;
    } while (since(start) < o.bench.seconds);
    const double seconds = since(start), core_seconds = static_cast<double>(std::clock() - cpu) / CLOCKS_PER_SEC;
    total += seconds;
    per_second.push_back(static_cast<double>(pairs) / seconds);
    per_core_second.push_back(static_cast<double>(pairs) / core_seconds);
  }
  std::sort(per_second.begin(), per_second.end());
  std::sort(per_core_second.begin(), per_core_second.end());
  const size_t middle = per_second.size() / 2;
  return {{"case", "loader"},
          {"data", data->describe()},
          {"batch", loader_options.batch_size},
          {"workers", o.workers},
          {"threads", compute_threads()},
          {"size", recipe_of_views.crop_size},
          {"pairs_per_second", per_second[middle]},
          {"pairs_per_second_min", per_second.front()},
          {"pairs_per_second_max", per_second.back()},
          {"pairs_per_core_second", per_core_second[middle]},
          {"data_wait", wait / total},
          {"bad_images", loader.bad_images()},
          {"windows", o.bench.windows}};
}

/// Weighted k-NN of random unit rows: N training and M test features of D dimensions, the K nearest vote.
nlohmann::json bench_knn(Device& device, const Options& o) {
  if (o.knn.size() != 4) throw UsageError("--knn takes four numbers: N,M,D,K");
  const int64_t n = o.knn[0], m = o.knn[1], dim = o.knn[2], k = o.knn[3];
  if (k > n) throw UsageError(cat("--knn: the {} nearest of {}", k, n));
  constexpr int kClasses = 10;
  uint32_t stream = 0;
  const auto features = [&](int64_t rows) {
    Features f;
    Random random(0, Purpose::test, 0, 0, stream++);
    std::vector<float> values(static_cast<size_t>(rows * dim));
    for (float& v : values) v = random.uniform(-1, 1);
    f.values = l2_normalize(Var(Tensor::from(device, {rows, dim}, values))).value();
    for (int64_t i = 0; i < rows; ++i) f.labels.push_back(static_cast<int>(i % kClasses));
    return f;
  };
  const Features train = features(n), test = features(m);
  double top1 = 0;
  const Timing timing = measure(
      o.bench, device, [&] { top1 = knn_classify(train, test, kClasses, {static_cast<int>(k)}, 0.07)[0].top1; });
  nlohmann::json json = timing.json();
  json.update({{"case", "knn"},
               {"n_train", n},
               {"n_test", m},
               {"dim", dim},
               {"k", k},
               {"gflop_s",
                2e-9 * static_cast<double>(n) * static_cast<double>(m) * static_cast<double>(dim) / (timing.ms * 1e-3)},
               {"top1", top1},
               {"memory_bytes", device.stats().reserved}});
  return json;
}

std::string table(const nlohmann::json& json) {
  if (!json.contains("ops")) {
    std::string text;
    for (const auto& [key, value] : json.items()) text += cat("{:<22} {}\n", key, json_line(value));
    return text;
  }
  std::string text =
      cat("copy {:.1f} GB/s, matrix product {:.0f} GFLOP/s (measured: the roofline)\n{:<22} {:<44} {:>9} "
          "{:>8} {:>9} {:>6}\n",
          json["bandwidth_gb_s"].get<double>(), json["peak_gflop_s"].get<double>(), "op", "case", "ms", "GB/s",
          "GFLOP/s", "roof");
  for (const nlohmann::json& op : json["ops"]) {
    text += cat("{:<22} {:<44} {:>9.3f} {:>8.1f} {:>9.1f} {:>5.0f}%\n", op["op"].get<std::string>(),
                op["detail"].get<std::string>(), op["ms"].get<double>(), op["gb_s"].get<double>(),
                op["gflop_s"].get<double>(), 100 * op["roofline_share"].get<double>());
  }
  return text;
}

int run(const Options& o) {
  if (o.op.empty() + o.step.empty() + o.loader.empty() + o.knn.empty() != 3)
    throw UsageError("bench needs one of --op NAME, --step NAME, --loader SPEC and --knn N,M,D,K");
  if (o.buckets > 0 && !o.step.starts_with("resnet"))
    throw UsageError("--buckets goes with --step resnet50, resnet18 or resnet18_cifar");
  start(o.common);
  const auto device = Device::open(o.device);
  nlohmann::json json;
  if (!o.op.empty()) {
    json = bench_kernels(*device, o.op, o.cifar, o.batch ? o.batch : o.cifar ? 64 : 16, o.bench);
  } else if (!o.knn.empty()) {
    json = bench_knn(*device, o);
  } else if (!o.loader.empty()) {
    json = bench_loader(*device, o);
  } else {
    json = o.step == "moco" || o.step == "csml" ? bench_method(*device, o) : bench_supervised(*device, o);
  }
  json["task"] = "bench";
  json["device"] = device->name();
  json["threads"] = compute_threads();
  answer(o.common, json, table(json));
  return 0;
}

}  // namespace

Timing measure(const BenchOptions& options, Device& device, const std::function<void()>& work) {
  constexpr double kMostTogether = 1000;
  const auto wait = [&] { device.backend().synchronize(); };
  for (int i = 0; i < options.warmup; ++i) work();
  wait();
  const Clock::time_point before = Clock::now();
  work();
  wait();
  // Calls between two waits: a device that works beside the host is fed without a gap, and is at most an eighth of a
  // window behind.
  const auto together = static_cast<int64_t>(std::clamp(options.seconds / 8 / since(before), 1., kMostTogether));
  std::vector<double> ms;
  for (int w = 0; w < options.windows; ++w) {
    const Clock::time_point start = Clock::now();
    int64_t calls = 0;
    double elapsed = 0;
    do {
      for (int64_t i = 0; i < together; ++i) work();
      wait();
      calls += together;
      elapsed = since(start);
    } while (elapsed < options.seconds);
    ms.push_back(1e3 * elapsed / static_cast<double>(calls));
  }
  std::sort(ms.begin(), ms.end());
  return {ms[ms.size() / 2], ms.front(), ms.back(), options.windows};
}

Command bench_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  app.add_option("--op", o->op,
                 "A kernel of the backend's catalogue, or all: time, GB/s, GFLOP/s, share of the roofline")
      ->type_name("NAME");
  app.add_option("--step", o->step,
                 "A training step: resnet50 (224 px) | resnet18 | resnet18_cifar (32 px, 7x7 or 3x3 stem), all "
                 "supervised on random images; moco | csml "
                 "(pretraining, --preset on --data)")
      ->check(CLI::IsMember({"resnet50", "resnet18", "resnet18_cifar", "moco", "csml"}))
      ->type_name("NAME");
  app.add_option("--loader", o->loader, "Two augmented views of each image of a data set")->type_name("SPEC");
  app.add_option("--knn", o->knn, "k-NN of random features: N training, M test, D dimensions, the K nearest vote")
      ->delimiter(',')
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 31))
      ->type_name("N,M,D,K");
  app.add_option("--batch", o->batch, "Images per step [16; 64 for 32 px; the preset's]")
      ->check(CLI::Range(1, 1 << 20))
      ->type_name("N");
  app.add_option(
         "--buckets", o->buckets,
         "--step resnet…: also with reductions of gradient buckets of so many MiB played by copies of equal bytes "
         "on a second stream; what of their time the step does not hide")
      ->check(CLI::Range(0.001, 4096.0))
      ->type_name("MIB");
  app.add_option("--preset", o->preset, "Of --step moco and csml")->type_name("NAME")->capture_default_str();
  app.add_option("--data", o->data, "Of --step moco and csml")->type_name("SPEC")->capture_default_str();
  app.add_option("--set", o->set, "Any configuration key of --step moco and csml, or of --loader")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  app.add_flag("--cifar", o->cifar, "--op in the shapes of ResNet-18 at 32 px instead of ResNet-50 at 224 px");
  app.add_option("--workers", o->workers, "Loader threads of --loader; 0: the calling thread decodes")
      ->check(CLI::Range(0, 1024))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--windows", o->bench.windows, "Timed windows; the median is reported")
      ->check(CLI::Range(1, 1000))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--seconds", o->bench.seconds, "Least length of a window")
      ->check(CLI::Range(0.0, 3600.0))
      ->type_name("S")
      ->capture_default_str();
  app.add_option("--warmup", o->bench.warmup, "Calls before timing")
      ->check(CLI::Range(1, 1000))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--device", o->device, "auto | cpu | cuda | cuda:N")->type_name("NAME")->capture_default_str();
  add_common_options(app, o->common);
  app.footer(
      "Examples: csml bench --step resnet50 --batch 16 --threads 2\n"
      "          csml bench --op conv2d --cifar --batch 64\n"
      "          csml bench --loader folder:DIR --workers 1\n"
      "          csml bench --knn 50000,10000,2048,200 --windows 1 --warmup 1");
  return [o] { return run(*o); };
}

}  // namespace csml
