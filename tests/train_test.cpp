// Whole pretraining runs on tiny synthetic data: they learn, do not depend on loader threads, keep their memory, go on
// exactly where they stopped, refuse what is damaged or changed, and live with unreadable images.
#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>

#include "csml/base.h"
#include "csml/memory_plan.h"
#include "csml/saved_model.h"
#include "csml/train_loop.h"
#include "data/dataset.h"
#include "engine/checkpoint.h"
#include "engine/log.h"

#include "tests/files.h"

using namespace csml;
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

/// Five steps an epoch, some milliseconds each.
Config tiny(const std::string& method, int epochs) {
  Config c;
  c.data.train = "synthetic:shapes?limit=80&size=16";
  c.data.test = "synthetic:shapes?limit=30&size=16&split=test";
  c.data.workers = 1;
  c.augment.crop_size = 16;
  c.model = {.depth = 18, .stem = "cifar", .width = 4, .head_hidden = 0, .head_mlp = true, .dim = 16};
  c.method.name = method;
  c.method.queue = 72;  // does not divide by the batch
  c.method.momentum = 0.95;
  c.method.bn_group_size = 8;
  c.method.neighbors = 3;
  c.method.refresh_epochs = 2;
  c.lr_per_256 = 1;
  c.train.epochs = epochs;
  c.train.batch_size = 16;
  c.train.log_every_steps = 1;
  c.train.checkpoint_every_epochs = 1;
  c.train.keep_checkpoints = 20;
  c.eval.knn_every_epochs = 1;
  c.eval.knn_k = 5;
  c.eval.resize = 0;
  c.eval.size = 16;
  c.eval.batch_size = 32;  // does not divide 80 or 30
  resolve(c);
  return c;
}

struct Run {
  RunResult result;
  ArenaStats memory;
};

Run run(const Config& config, const fs::path& out, const std::atomic<bool>* stop = nullptr,
        const fs::path& init_from = {}) {
  fs::create_directories(out);
  log_configure(0, 1, true);
  set_compute_threads(1);  // threads only wait for each other in layers this small
  const auto device = Device::open("cpu");
  const auto comm = Comm::local();
  RunOptions options;
  options.out = out;
  options.stop = stop;
  options.init_from = init_from;
  Run r;
  r.result = pretrain(*device, *comm, config, options);
  r.memory = device->stats();
  return r;
}

std::vector<json> lines_of(const fs::path& file) {
  std::vector<json> lines;
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) lines.push_back(json::parse(line));
  return lines;
}

/// The lines of a kind ("step", "epoch", "eval", "event") of a run.
std::vector<json> metrics(const fs::path& out, const std::string& kind) {
  std::vector<json> lines = lines_of(out / "metrics.jsonl");
  std::erase_if(lines, [&](const json& line) { return line["kind"] != kind; });
  return lines;
}

std::vector<json> events(const fs::path& out, const std::string& name) {
  std::vector<json> lines = metrics(out, "event");
  std::erase_if(lines, [&](const json& line) { return line["event"] != name; });
  return lines;
}

fs::path checkpoint(const fs::path& out, int64_t step) { return out / "checkpoints" / cat("step_{:08d}", step); }

/// Encoders, optimizer, queue and neighbour table after `step` steps, byte by byte.
std::string bytes_of(const fs::path& out, int64_t step) {
  return slurp(checkpoint(out, step) / "model.safetensors") + slurp(checkpoint(out, step) / "state.safetensors");
}

void check_equal(const fs::path& a, const fs::path& b, int64_t step) {
  const bool equal = bytes_of(a, step) == bytes_of(b, step);
  CHECK_MESSAGE(equal, cat("{} and {} differ at step {}", a.string(), b.string(), step));
}

}  // namespace

TEST_CASE("a run learns: the loss falls below chance, for MoCo and CsMl") {
  for (const char* method : {"moco", "csml"}) {
    const Folder folder;
    Config config = tiny(method, 12);
    // Many more images than the queue holds: else an image's own old key is among its negatives.
    config.data.train = "synthetic:shapes?limit=320&size=16";
    config.augment.scale_min = 0.6f;
    config.augment.jitter_p = config.augment.gray_p = config.augment.blur_p = 0;
    config.method.queue = 64;
    config.method.momentum = 0.99;
    config.lr_per_256 = 0.3;
    config.eval.knn_every_epochs = 12;
    config.train.checkpoint_every_epochs = 0;
    resolve(config);
    const RunResult result = run(config, folder.path).result;
    CHECK(result.steps == 240);
    CHECK(result.epochs == 12);
    CHECK_FALSE(result.stopped);
    const std::vector<json> epochs = metrics(folder.path, "epoch"), steps = metrics(folder.path, "step");
    REQUIRE(epochs.size() == 12);
    REQUIRE(steps.size() == 240);
    const double chance = steps.back()["chance"].get<double>(), last = epochs.back()["loss"].get<double>();
    CHECK(chance == doctest::Approx(std::log(65.0)));
    const double first = epochs[0]["loss"].get<double>();
    MESSAGE(
        cat("{}: loss {:.3f} -> {:.3f}, chance {:.3f}, k-NN {:.1f} %", method, first, last, chance, result.knn_top1));
    CHECK(last < 0.8 * chance);
    CHECK(last < first - 0.3);
    CHECK(steps.back()["positive_similarity"].get<double>() > steps.back()["negative_similarity"].get<double>() + 0.3);
    CHECK(steps.back()["feature_spread"].get<double>() > 0.5);
    CHECK(steps.back()["queue_fill"] == 1.0);
    CHECK(result.loss == steps.back()["loss"].get<double>());
    CHECK(result.knn_top1 == metrics(folder.path, "eval").back()["top1"].get<double>());
  }
}

TEST_CASE("what a run writes does not depend on loader threads or on how often it is watched") {
  const Folder folder;
  Config config = tiny("csml", 3);
  for (const int workers : {0, 1, 2}) {
    config.data.workers = workers;
    config.train.log_every_steps = workers == 2 ? 7 : 1;
    run(config, folder.path / cat("{}", workers));
  }
  check_equal(folder.path / "0", folder.path / "1", 15);
  check_equal(folder.path / "0", folder.path / "2", 15);
  // The end point is not the start, and the seed matters.
  CHECK(bytes_of(folder.path / "0", 15) != bytes_of(folder.path / "0", 0));
  config.train.seed = 1;
  run(config, folder.path / "seed");
  CHECK(bytes_of(folder.path / "seed", 15) != bytes_of(folder.path / "0", 15));
}

TEST_CASE("the online k-NN's limits hold with and without a limit in the SPEC; the smaller one wins") {
  Config config = tiny("moco", 1);  // 80 and 30 images
  for (const auto& [train_limit, test_limit, want_train, want_test] :
       {std::array{20, 12, 20, 12}, std::array{500, 30, 80, 30}, std::array{0, 0, 80, 30}}) {
    const Folder folder;
    config.eval.knn_train_limit = train_limit;
    config.eval.knn_test_limit = test_limit;
    run(config, folder.path);
    const std::vector<json> evals = metrics(folder.path, "eval");
    REQUIRE(evals.size() == 2);
    CHECK(evals[1]["n_train"] == want_train);
    CHECK(evals[1]["n_test"] == want_test);
  }
}

TEST_CASE("memory stays what it is after the first epoch, evaluation and refresh included") {
  const Folder folder;
  Config config = tiny("csml", 4);
  config.method.refresh_epochs = 1;
  const Run short_run = run(config, folder.path / "short");
  config.train.epochs = 12;
  resolve(config);
  const Run long_run = run(config, folder.path / "long");
  CHECK(long_run.memory.growths == short_run.memory.growths);
  CHECK(long_run.memory.peak == short_run.memory.peak);
  CHECK(events(folder.path / "long", "neighbors").size() == 12);
  CHECK(metrics(folder.path / "long", "eval").size() == 13);
  const std::vector<json> steps = metrics(folder.path / "long", "step");
  REQUIRE(steps.size() == 60);
  for (size_t i = 6; i < steps.size(); ++i) CHECK(steps[i]["memory_bytes"] == steps[5]["memory_bytes"]);
}

TEST_CASE("a run that stopped in the middle of an epoch goes on exactly") {
  for (const char* method : {"moco", "csml"}) {
    const Folder folder;
    Config config = tiny(method, 4);
    run(config, folder.path / "whole");
    for (const int stop : {1, 7, 10, 13}) {  // inside the first epoch; before, at and after a refresh
      const fs::path out = folder.path / cat("{}", stop);
      config.train.max_steps = stop;
      CHECK(run(config, out).result.steps == stop);
      config.train.max_steps = 0;
      const RunResult result = run(config, out).result;
      CHECK(result.steps == 20);
      check_equal(folder.path / "whole", out, 20);
      const std::vector<json> resumed = events(out, "resumed"), steps = metrics(out, "step");
      REQUIRE(resumed.size() == 1);
      CHECK(resumed[0]["text"] == cat("step_{:08d}", stop));
      // Each step is told once, with the loss of the run that was not interrupted.
      const std::vector<json> whole = metrics(folder.path / "whole", "step");
      REQUIRE(steps.size() == 20);
      const std::vector<json> refreshes = events(out, "neighbors");  // every second epoch
      REQUIRE(refreshes.size() == (config.method.name == "csml" ? 2 : 0));
      for (size_t i = 0; i < refreshes.size(); ++i) CHECK(refreshes[i]["epoch"] == 2 * i);
      for (size_t i = 0; i < 20; ++i) {
        CHECK(steps[i]["step"] == i + 1);
        CHECK(steps[i]["loss"] == whole[i]["loss"]);
      }
    }
  }
}

TEST_CASE("levels, small crops and every base go on exactly, and their checkpoints hold it all") {
  const auto with = [](const std::string& method, const std::string& base, const std::string& alignment) {
    Config c = tiny(method, 3);
    c.method.base = base;
    c.method.levels = {"res4", "res5"};
    c.method.alignment = alignment;
    c.method.crop_sizes = {12, 8};
    c.method.directions = 0;
    c.model.head_bn = "auto";
    c.method.momentum_schedule = "cosine";
    c.lr_per_256 = 0.1;
    resolve(c);
    return c;
  };
  for (const Config& config :
       {with("csml", "moco", "patch"), with("csml", "mocov3", "patch-lite"), with("simclr", "moco", "global"),
        with("csml", "simclr", "global"), with("byol", "moco", "global")}) {
    CAPTURE(cat("{} {}", config.method.name, config.method.base));
    const Folder folder;
    run(config, folder.path / "whole");
    Config first = config;
    first.train.max_steps = 7;  // after the first refresh, inside an epoch
    CHECK(run(first, folder.path / "stopped").result.steps == 7);
    CHECK(run(config, folder.path / "stopped").result.steps == 15);
    check_equal(folder.path / "whole", folder.path / "stopped", 15);
    const json last = metrics(folder.path / "whole", "step").back();
    CHECK(last["loss_levels"].size() == 2);
    CHECK(std::isfinite(last["loss"].get<double>()));
    const std::string names = slurp(checkpoint(folder.path / "whole", 15) / "state.safetensors").substr(0, 4000);
    const bool queue = base_of(config.method).negatives == Base::Negatives::queue;
    CHECK(contains(names, "queue.res4.cursor") == queue);
    CHECK(contains(names, "queue.res5.cursor") == queue);
    const auto device = Device::open("cpu");  // what evaluation and export read
    CHECK(load_model(*device, folder.path / "whole", "q").step == 15);
    CHECK(load_model(*device, folder.path / "whole", "k").step == 15);
    CHECK(contains(plan_text(config), queue ? "2 levels" : "activations"));
  }
}

TEST_CASE("the stop flag ends a run with a checkpoint, and the same command goes on") {
  const Folder folder;
  Config config = tiny("csml", 12);
  config.train.checkpoint_every_epochs = 0;
  config.eval.knn_every_epochs = 0;
  run(config, folder.path / "whole");
  bool stopped = false;
  for (int attempt = 0; attempt < 5 && !stopped; ++attempt) {
    const fs::path out = folder.path / cat("stopped{}", attempt);
    std::atomic<bool> stop{false}, over{false};
    std::thread watcher([&] {
      while (!over && (!fs::exists(out / "metrics.jsonl") || !contains(slurp(out / "metrics.jsonl"), "\"step\":12")))
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      stop = true;
    });
    const RunResult first = run(config, out, &stop).result;
    over = true;
    watcher.join();
    stopped = first.stopped;
    if (!stopped) continue;
    CHECK(first.steps >= 12);
    CHECK(first.steps < 60);
    CHECK(events(out, "stopped").size() == 1);
    CHECK(fs::exists(checkpoint(out, first.steps) / "manifest.json"));
    CHECK(first.checkpoint == checkpoint(out, first.steps));
    stop = false;
    const RunResult second = run(config, out, &stop).result;
    CHECK(second.steps == 60);
    CHECK_FALSE(second.stopped);
    check_equal(folder.path / "whole", out, 60);
  }
  CHECK(stopped);
}

TEST_CASE("a damaged newest checkpoint is refused by name and the one before is used") {
  const Folder folder;
  Config config = tiny("csml", 3);
  config.train.checkpoint_every_steps = 3;
  config.train.checkpoint_every_epochs = 0;
  run(config, folder.path / "whole");
  struct Damage {
    std::string name, file;
    std::function<void(std::string& bytes)> apply;
  };
  const std::vector<Damage> damages = {
      {"cut off", "model.safetensors", [](std::string& b) { b.resize(b.size() / 2); }},
      {"a bit of the state", "state.safetensors", [](std::string& b) { b[b.size() * 3 / 4] ^= 0x10; }},
      {"a bit of a weight", "model.safetensors", [](std::string& b) { b[b.size() - 9] ^= 1; }},
      {"empty manifest", "manifest.json", [](std::string& b) { b.clear(); }},
  };
  for (const Damage& damage : damages) {
    CAPTURE(damage.name);
    const fs::path out = folder.path / damage.name;
    config.train.max_steps = 11;
    run(config, out);  // checkpoints at 0, 3, 6, 9 and 11
    const fs::path file = checkpoint(out, 11) / damage.file;
    std::string bytes = slurp(file);
    damage.apply(bytes);
    spill(file, bytes);

    const std::string why = error_of([&] { open_checkpoint(checkpoint(out, 11)); });
    CHECK(contains(why, "step_00000011"));
    CHECK(contains(why, damage.file));
    std::vector<std::string> warnings;
    const auto found = newest_checkpoint(out, [&](const std::string& line) { warnings.push_back(line); });
    REQUIRE(found);
    CHECK(found->step == 9);
    REQUIRE(warnings.size() == 1);
    CHECK(contains(warnings[0], "step_00000011"));

    config.train.max_steps = 0;
    CHECK(run(config, out).result.steps == 15);
    CHECK(events(out, "resumed").at(0)["text"] == "step_00000009");
    CHECK(metrics(out, "step").size() == 15);
    check_equal(folder.path / "whole", out, 15);
  }
}

TEST_CASE("a run is not resumed on other data or another network") {
  const Folder folder;
  Config config = tiny("moco", 2);
  run(config, folder.path);
  const std::string before = bytes_of(folder.path, 10);
  Config other = config;
  other.data.train = "synthetic:shapes?limit=90&size=16";
  const std::string data = error_of([&] { run(other, folder.path); });
  CHECK(contains(data, "other data"));
  CHECK(contains(data, "step_00000010"));
  other = config;
  other.method.queue = 80;
  CHECK(contains(error_of([&] { run(other, folder.path); }), "queue.res5"));
  other = config;
  other.model.width = 8;
  CHECK(contains(error_of([&] { run(other, folder.path); }), "another architecture"));
  CHECK(bytes_of(folder.path, 10) == before);
  // Nothing left to do: the same command ends at once and changes nothing.
  CHECK(run(config, folder.path).result.steps == 10);
  CHECK(bytes_of(folder.path, 10) == before);
}

namespace {

/// Binary PPM files of synthetic shapes, one folder per class; the numbered ones are cut off.
void write_images(const fs::path& folder, const std::vector<int64_t>& damaged) {
  const auto shapes = open_dataset("synthetic:shapes?limit=40&size=16");
  for (int64_t i = 0; i < shapes->size(); ++i) {
    const Image image = shapes->load(i);
    const fs::path below = folder / cat("class{}", shapes->label(i));
    fs::create_directories(below);
    std::string bytes = "P6\n16 16\n255\n" + std::string(reinterpret_cast<const char*>(image.data()), image.size());
    if (std::find(damaged.begin(), damaged.end(), i) != damaged.end()) bytes.resize(100);
    spill(below / cat("image{}.ppm", i), bytes);
  }
}

}  // namespace

TEST_CASE("an unreadable image is replaced, counted and listed; too many stop the run") {
  for (const char* method : {"moco", "csml"}) {
    const Folder folder;
    write_images(folder.path / "images", {13});
    Config config = tiny(method, 6);
    config.data.train = (folder.path / "images").string();
    config.data.test = "";
    std::vector<std::string> bytes;
    for (const int workers : {0, 2}) {
      config.data.workers = workers;
      const fs::path out = folder.path / cat("run{}", workers);
      const RunResult result = run(config, out).result;
      CHECK(result.steps == 12);
      CHECK(result.bad_images == 1);
      const std::vector<json> lines = lines_of(out / "bad_images.jsonl");
      REQUIRE_FALSE(lines.empty());
      for (const json& line : lines) {
        CHECK(fs::path(line["path"].get<std::string>()).filename() == "image13.ppm");
        CHECK(line["reason"].get<std::string>() != "");
      }
      CHECK(lines.size() == 1);  // told once, however often the file is met
      CHECK(metrics(out, "epoch").back()["bad_images"] == 1);
      for (const json& line : metrics(out, "step")) CHECK(std::isfinite(line["loss"].get<double>()));
      bytes.push_back(bytes_of(out, 12));
    }
    const bool equal = bytes[0] == bytes[1];
    CHECK(equal);
  }
  const Folder folder;
  write_images(folder.path / "images", {3, 8, 13, 21, 34});
  Config config = tiny("moco", 6);
  config.data.train = (folder.path / "images").string();
  config.data.test = "";
  const std::string why = error_of([&] { run(config, folder.path / "run"); });
  CHECK(contains(why, "data.max_bad_share"));
  CHECK(contains(why, ".ppm"));
  // A share that allows them holds for every reader of the images, the neighbour search included.
  config = tiny("csml", 2);
  config.data.train = (folder.path / "images").string();
  config.data.test = "";
  config.data.max_bad_share = 0.2;
  CHECK(error_of([&] { CHECK(run(config, folder.path / "allowed").result.steps == 4); }) == "");
}

TEST_CASE("a checkpoint is a model that loads, whose weights can start another run") {
  const Folder folder;
  Config config = tiny("moco", 1);
  run(config, folder.path / "a");
  const auto device = Device::open("cpu");
  for (const char* which : {"q", "k"}) {
    const SavedModel model = load_model(*device, folder.path / "a", which);
    CHECK(model.step == 5);
    CHECK(model.config.model.width == 4);
    const SafetensorsFile file = SafetensorsFile::open(checkpoint(folder.path / "a", 5) / "model.safetensors");
    const NamedArray stored = file.read(cat("encoder_{}.conv1.weight", which));
    CHECK(stored.shape == Shape{4, 3, 3, 3});
    const Params::Entry& entry = model.encoder->params().entries()[0];
    CHECK(entry.name == "conv1.weight");
    const float* values = reinterpret_cast<const float*>(stored.data.data());
    CHECK(model.encoder->params().master().host<float>()[0] == values[0]);
  }

  // The query encoder alone, under torchvision's names: both encoders of another run start from it.
  const SafetensorsFile file = SafetensorsFile::open(checkpoint(folder.path / "a", 5) / "model.safetensors");
  const std::string prefix = "encoder_q.";
  std::vector<NamedArray> arrays;
  std::vector<HostArray> views;
  for (const std::string& name : file.names())
    if (name.starts_with(prefix)) {
      arrays.push_back(file.read(name));
      arrays.back().name = name.substr(prefix.size());
    }
  for (const NamedArray& a : arrays) views.push_back({a.name, a.dtype, a.shape, a.data.data()});
  write_safetensors(folder.path / "weights.safetensors", views);
  config.train.seed = 9;
  run(config, folder.path / "b", nullptr, folder.path / "weights.safetensors");
  const SafetensorsFile start = SafetensorsFile::open(checkpoint(folder.path / "b", 0) / "model.safetensors");
  for (const NamedArray& a : arrays)
    for (const char* encoder : {"encoder_q.", "encoder_k."})
      CHECK_MESSAGE(start.read(encoder + a.name).data == a.data, cat("{}{}", encoder, a.name));
}

TEST_CASE("impossible runs are refused before they start") {
  const Folder folder;
  Config config = tiny("moco", 1);
  config.train.batch_size = 96;
  CHECK(contains(error_of([&] { run(config, folder.path / "a"); }), "larger than the data set"));
  config = tiny("csml", 1);
  config.method.neighbors = 80;
  CHECK(contains(error_of([&] { run(config, folder.path / "b"); }), "method.neighbors"));
  config = tiny("moco", 1);
  config.data.train = "folder:" + (folder.path / "nowhere").string();
  CHECK(contains(error_of([&] { run(config, folder.path / "c"); }), "nowhere"));
}
