// Whole pretraining runs on tiny synthetic data: they learn, do not depend on loader threads, keep their memory, refuse
// what is changed, and live with unreadable images. tests/interruption_test.cpp interrupts them.
#include <cmath>
#include <cstring>
#include <set>

#include "csml/method/base.h"
#include "csml/method/resolve.h"
#include "csml/training/memory_plan.h"
#include "csml/training/run_log.h"
#include "csml/training/saved_model.h"
#include "data/dataset.h"

#include "tests/run_fixture.h"

using namespace csml;
using namespace csml::test;
namespace fs = std::filesystem;
using nlohmann::json;

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
    // Of the first epoch with all terms: in CsMl's warm-up the mixed term counts 0, so the mean of the three is lower.
    const size_t warmup = config.method.name == "csml" ? static_cast<size_t>(config.method.warmup_epochs) : 0;
    const double first = epochs[warmup]["loss"].get<double>();
    MESSAGE(
        cat("{}: loss {:.3f} -> {:.3f}, chance {:.3f}, k-NN {:.1f} %", method, first, last, chance, result.knn_top1));
    CHECK(last < 0.8 * chance);
    CHECK(last < first - 0.3);
    CHECK(steps.back()["positive_similarity"].get<double>() > steps.back()["negative_similarity"].get<double>() + 0.3);
    CHECK(steps.back()["feature_spread"].get<double>() > 0.5);
    CHECK(steps.back()["queue_fill"] == 1.0);
    CHECK(result.loss.value() == steps.back()["loss"].get<double>());
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
  // The third step is recorded, into the memory of the second.
  for (size_t i = 2; i < 5; ++i) CHECK(steps[i]["memory_bytes"] == steps[1]["memory_bytes"]);
  for (size_t i = 6; i < steps.size(); ++i) CHECK(steps[i]["memory_bytes"] == steps[5]["memory_bytes"]);
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
    const bool queue = base_of(config.method).queue;
    CHECK(contains(names, "queue.res4.cursor") == queue);
    CHECK(contains(names, "queue.res5.cursor") == queue);
    const auto device = open_backend();  // what evaluation and export read
    CHECK(load_model(*device, folder.path / "whole", "q").step == 15);
    CHECK(load_model(*device, folder.path / "whole", "k").step == 15);
    CHECK(contains(plan_text(config), queue ? "2 levels" : "activations"));
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

TEST_CASE("lines of bad_images.jsonl that name no file are told in one line, and the run goes on") {
  const Folder folder;
  const fs::path file = folder.path / "bad_images.jsonl";
  std::vector<std::string> warnings;
  const auto warn = [&](const std::string& line) { warnings.push_back(line); };
  CHECK(bad_paths_in(file, warn).empty());
  CHECK(warnings.empty());
  spill(file,
        "{\"path\":\"a.jpg\",\"reason\":\"cut off\"}\n{\"path\":7}\n\"path\"\n[{\"path\":\"b.jpg\"}]\n{}\nnot JSON\n" +
            std::string(100'000, '[') + "\n{\"path\":\"c.jpg\"}\n");
  CHECK(bad_paths_in(file, warn) == std::set<std::string>{"a.jpg", "c.jpg"});
  REQUIRE(warnings.size() == 1);
  CHECK(warnings[0] == cat("{}: 6 of 8 lines name no file, the first is line 2; they are left out", file.string()));
  CHECK(run(tiny("moco", 1), folder.path).result.steps == 5);
}

TEST_CASE("a checkpoint is a model that loads, whose weights can start another run") {
  const Folder folder;
  Config config = tiny("moco", 1);
  run(config, folder.path / "a");
  const auto device = open_backend();
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
