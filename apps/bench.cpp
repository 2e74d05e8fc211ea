// csml bench: time of kernels, of whole training steps and of the loader.
#include "apps/bench.h"

#include <algorithm>
#include <chrono>
#include <ctime>

#include "apps/command.h"
#include "apps/config.h"
#include "csml/evaluation/probe_knn.h"
#include "csml/method/views.h"
#include "engine/log.h"

namespace csml {
namespace {

using Clock = std::chrono::steady_clock;
double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

struct Options {
  CommonOptions common;
  BenchOptions bench;
  WorkOptions work;
  std::string op, step, part, loader, device = "auto", exchange;
  std::vector<int64_t> knn;
  int workers = 0;
  bool cifar = false, floors = false;
  std::string dtype = "bf16";
};

/// Milliseconds in which the host hands one run to an idle device, which works on by itself: the median of five. Where
/// it is well below a run's time, the host never keeps the device waiting between runs.
double issue_ms(Device& device, BenchWork& work) {
  std::vector<double> ms;
  for (int i = 0; i < 5; ++i) {
    device.backend().synchronize();
    const Clock::time_point start = Clock::now();
    work.run();
    ms.push_back(1e3 * since(start));
  }
  device.backend().synchronize();
  std::sort(ms.begin(), ms.end());
  return ms[ms.size() / 2];
}

/// The first run, told to a file.
void write_exchange(const std::string& path, BenchWork& work) {
  constexpr int kMostRuns = 40;  // loss scaling starts high and halves at each overflow
  Exchange exchange;
  const nlohmann::json about = work.about();
  for (const auto& [key, value] : about.items())
    exchange.note(key, value.is_string() ? value.get<std::string>() : json_line(value));
  work.put_inputs(exchange);
  int runs = 0;
  do {
    if (++runs > kMostRuns) throw Error(cat("--exchange: no finite gradient in {} runs", kMostRuns));
    work.run();
  } while (!work.put_results(exchange));
  exchange.write(path);
}

nlohmann::json bench_work(Device& device, const Options& o) {
  const auto work = o.work.name == o.part ? make_part(device, o.work) : make_step(device, o.work);
  const size_t before = device.stats().in_use;
  if (!o.exchange.empty()) write_exchange(o.exchange, *work);
  const Timing timing = measure(o.bench, device, [&] { work->run(); });
  nlohmann::json json = timing.json();
  json.update(work->about());
  if (work->images()) json["images_per_second"] = static_cast<double>(work->images()) / (timing.ms * 1e-3);
  json["issue_ms"] = issue_ms(device, *work);
  if (o.work.buckets > 0) json["buckets"] = bench_buckets(device, o.work, o.bench, timing);
  if (work->calls()) json["calls"] = work->calls();
  // With the backend's own scratch memory where it counts that; else the tensors' arena.
  const Backend::Memory memory = device.backend().memory();
  json["memory_before_bytes"] = before;
  json["memory_bytes"] = memory.now ? memory.now : device.stats().reserved;
  json["memory_peak_bytes"] = memory.peak ? memory.peak : device.stats().peak;
  return json;
}

/// Two augmented, normalised views of every image, as MoCo's loader makes them: decode and crop in the loader, colour,
/// blur and normalisation by the augment kernel.
nlohmann::json bench_loader(Device& device, const Options& o) {
  const auto data = open_dataset(o.loader);
  AugmentConfig recipe_of_views;  // MoCo v2's, unless --set
  if (!o.work.set.empty()) {
    ConfigBuilder builder;
    for (const std::string& assignment : o.work.set) builder.set_assignment(assignment);
    recipe_of_views = builder.build().config.augment;
  }
  recipe_of_views.channels = data->channels();
  LoaderOptions loader_options;
  loader_options.workers = o.workers;
  loader_options.batch_size = o.work.batch ? o.work.batch : static_cast<int>(std::min<int64_t>(64, data->size()));
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

int run(Options o) {
  if (o.op.empty() + o.step.empty() + o.part.empty() + o.loader.empty() + o.knn.empty() != 4)
    throw UsageError("bench needs one of --op NAME, --step NAME, --part NAME, --loader SPEC and --knn N,M,D,K");
  if (o.step.empty() && o.part.empty() && !o.exchange.empty()) throw UsageError("--exchange is for --step and --part");
  if (o.work.buckets > 0 && !o.step.starts_with("resnet"))
    throw UsageError("--buckets goes with --step resnet50, resnet18 or resnet18_cifar");
  start(o.common);
  if (o.floors) {
    if (o.op.empty()) throw UsageError("--floors belongs to --op NAME");
    const DType type = o.dtype == "f32" ? DType::f32 : o.dtype == "f16" ? DType::f16 : DType::bf16;
    nlohmann::json json = bench_floors(o.op, o.cifar, o.work.batch ? o.work.batch : 256, type);
    json["task"] = "bench";
    answer(o.common, json, floors_table(json));
    return 0;
  }
  const auto device = Device::open(o.device);
  nlohmann::json json;
  if (!o.op.empty()) {
    json = bench_kernels(*device, o.op, o.cifar, o.work.batch ? o.work.batch : o.cifar ? 64 : 16, o.bench);
  } else if (!o.knn.empty()) {
    json = bench_knn(*device, o);
  } else if (!o.loader.empty()) {
    json = bench_loader(*device, o);
  } else {
    o.work.name = o.step + o.part;
    o.work.given |= !o.exchange.empty();
    json = bench_work(*device, o);
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
                 "supervised on random images; moco | csml (pretraining, --preset on --data)")
      ->check(CLI::IsMember({"resnet50", "resnet18", "resnet18_cifar", "moco", "csml"}))
      ->type_name("NAME");
  app.add_option("--part", o->part,
                 "A part of a step, of --size: info_nce (queries, queue rows, dimensions, positives), top_k (queries, "
                 "rows, dimensions, nearest), commit (parameters)")
      ->check(CLI::IsMember({"info_nce", "top_k", "commit"}))
      ->type_name("NAME");
  app.add_option("--size", o->work.size, "Of --part [256,65536,128,1; 256,65536,128,5; 28000000]")
      ->delimiter(',')
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40))
      ->type_name("N,…");
  app.add_option("--exchange", o->exchange,
                 "Before timing, write what the first run of --step or --part starts from and what it makes to this "
                 "safetensors file, for bench/pytorch to repeat; of moco and csml with --given")
      ->type_name("FILE");
  app.add_flag("--given", o->work.given,
               "Of --step moco and csml: normalised images that are on the device already, instead of uploading and "
               "augmenting crops of --data");
  app.add_option("--precision", o->work.precision,
                 "Of --step and --part: fp32, on a GPU also bf16 | fp16 [the preset's, fp32]")
      ->type_name("NAME");
  app.add_option("--loader", o->loader, "Two augmented views of each image of a data set")->type_name("SPEC");
  app.add_option("--knn", o->knn, "k-NN of random features: N training, M test, D dimensions, the K nearest vote")
      ->delimiter(',')
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 31))
      ->type_name("N,M,D,K");
  app.add_option("--batch", o->work.batch, "Images per step [16; 64 for 32 px; the preset's]")
      ->check(CLI::Range(1, 1 << 20))
      ->type_name("N");
  app.add_option(
         "--buckets", o->work.buckets,
         "--step resnet…: also with reductions of gradient buckets of so many MiB played by copies of equal bytes "
         "on a second stream; what of their time the step does not hide")
      ->check(CLI::Range(0.001, 4096.0))
      ->type_name("MIB");
  app.add_option("--preset", o->work.preset, "Of --step moco and csml")->type_name("NAME")->capture_default_str();
  app.add_option("--data", o->work.data, "Of --step moco and csml")->type_name("SPEC")->capture_default_str();
  app.add_option("--set", o->work.set, "Any configuration key of --step moco and csml, or of --loader")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  app.add_flag("--cifar", o->cifar, "--op in the shapes of ResNet-18 at 32 px instead of ResNet-50 at 224 px");
  app.add_flag("--floors", o->floors,
               "--op without running it: bytes, FLOPs and the least time on an H100 and an A100 (batch 256 unless "
               "--batch), as a Markdown table");
  app.add_option("--dtype", o->dtype, "Activations of --floors: f32 | bf16 | f16")
      ->check(CLI::IsMember({"f32", "bf16", "f16"}))
      ->type_name("NAME")
      ->capture_default_str();
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
      "          csml bench --part info_nce --size 256,65536,128,2\n"
      "          csml bench --op conv2d --cifar --batch 64\n"
      "          csml bench --op all --floors\n"
      "          csml bench --loader folder:DIR --workers 1\n"
      "          csml bench --knn 50000,10000,2048,200 --windows 1 --warmup 1");
  return [o] { return run(*o); };
}

}  // namespace csml
