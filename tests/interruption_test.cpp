// Interrupted runs: stopped by a flag, a clock or a damaged checkpoint they go on exactly; steps without a finite
// gradient change nothing; any step can be replayed.
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <set>
#include <thread>

#include "csml/method/resolve.h"
#include "csml/training/replay.h"
#include "csml/training/steps_in_flight.h"
#include "kernels/cpu/backend.h"

#include "tests/run_fixture.h"

using namespace csml;
using namespace csml::test;
namespace fs = std::filesystem;
using nlohmann::json;

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
      std::vector<int> refreshes;
      for (const json& event : events(out, "neighbors")) refreshes.push_back(event["epoch"]);
      // Every second epoch, and where the warm-up ends.
      CHECK(refreshes == (config.method.name == "csml" ? std::vector{0, 1, 2} : std::vector<int>{}));
      for (size_t i = 0; i < 20; ++i) {
        CHECK(steps[i]["step"] == i + 1);
        CHECK(steps[i]["loss"] == whole[i]["loss"]);
      }
    }
  }
}

TEST_CASE("a run that goes on from another one's checkpoint does so once; the same command goes on with its own") {
  const Folder folder;
  const fs::path first = folder.path / "first", second = folder.path / "second";
  Config config = tiny("csml", 4);
  run(config, first);
  const std::string before = bytes_of(first, 20);
  for (const int stop : {13, 17, 0}) {
    config.train.max_steps = stop;
    run(config, second, nullptr, {}, {}, checkpoint(first, 10));
  }
  const std::vector<json> resumed = events(second, "resumed");
  REQUIRE(resumed.size() == 3);
  CHECK(resumed[0]["text"] == "step_00000010");
  CHECK(resumed[1]["text"] == "step_00000013");
  CHECK(resumed[2]["text"] == "step_00000017");
  check_equal(first, second, 20);
  // Back inside the run itself is what was asked for.
  run(config, second, nullptr, {}, {}, checkpoint(second, 13));
  CHECK(events(second, "resumed").back()["text"] == "step_00000013");
  check_equal(first, second, 20);
  CHECK(bytes_of(first, 20) == before);
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

TEST_CASE("a stop interrupts evaluation and neighbour search; both are done again and nothing else changes") {
  const Folder folder;
  Config config = tiny("csml", 3);
  run(config, folder.path / "whole");
  const fs::path out = folder.path / "out";
  std::atomic<bool> stop{true};
  const RunResult first = run(config, out, &stop).result;  // inside the evaluation of the untrained encoder
  CHECK(first.stopped);
  CHECK(first.steps == 0);
  CHECK(metrics(out, "eval").empty());
  CHECK(open_checkpoint(checkpoint(out, 0)).user["evaluation_due"] == true);
  config.train.max_hours = 1e-9;  // over when the first batch of the evaluation asks
  const RunResult second = run(config, out).result;
  CHECK(second.stopped);
  CHECK(second.steps == 0);
  CHECK(contains(events(out, "stopped").back()["text"].get<std::string>(), "train.max_hours"));
  config.train.max_hours = 0;
  config.train.max_steps = 10;  // the end of the second epoch; a refresh comes next
  run(config, out);
  stop = false;
  config.train.max_steps = 0;
  const auto at_refresh = [&](const std::string& phase) { stop = phase == "the neighbour search of epoch 2"; };
  const RunResult third = run(config, out, &stop, {}, at_refresh).result;
  CHECK(third.stopped);
  CHECK(third.steps == 10);
  CHECK(events(out, "neighbors").size() == 2);
  CHECK(run(config, out).result.steps == 15);
  check_equal(folder.path / "whole", out, 15);
  const std::vector<json> whole = metrics(folder.path / "whole", "eval"), parts = metrics(out, "eval");
  REQUIRE(parts.size() == whole.size());
  for (size_t i = 0; i < whole.size(); ++i) {
    CHECK(parts[i]["step"] == whole[i]["step"]);
    CHECK(parts[i]["top1"] == whole[i]["top1"]);
  }
}

TEST_CASE("the last evaluation, interrupted, leaves a run that is not done") {
  const Folder folder;
  Config config = tiny("moco", 2);
  std::atomic<bool> stop{false};
  const RunResult first = run(config, folder.path, &stop, {}, [&](const std::string& phase) {
                            if (phase == "the k-NN evaluation after epoch 2") stop = true;
                          }).result;
  CHECK(first.steps == 10);
  CHECK(first.stopped);
  CHECK(metrics(folder.path, "eval").size() == 2);
  CHECK(run(config, folder.path).result.steps == 10);
  CHECK(metrics(folder.path, "eval").size() == 3);
  CHECK(open_checkpoint(checkpoint(folder.path, 10)).user["evaluation_due"] == false);
}

TEST_CASE("steps without a finite gradient change nothing, are counted and captured, and end the run") {
  const Folder folder;
  Config config = tiny("csml", 4);
  config.lr_per_256 = 1e30;  // the weights leave the range of f32 at the first step
  config.train.max_non_finite_steps = 4;
  config.train.checkpoint_every_steps = 1;
  resolve(config);
  const std::string why = error_of([&] { run(config, folder.path); });
  CHECK(contains(why, "no finite gradient in 4 steps from step "));
  const std::vector<json> found = events(folder.path, "non_finite");
  REQUIRE(found.size() == 1);
  const int64_t step = std::stoll(found[0]["text"].get<std::string>().substr(5));
  CHECK(contains(why, cat("csml replay --run {} --step {}", folder.path.string(), step)));
  CHECK(metrics(folder.path, "step").back()["skipped_steps"].get<int>() >= 3);
  const bool unchanged = bytes_of(folder.path, step - 1) == bytes_of(folder.path, step);
  CHECK(unchanged);

  const Checkpoint captured = open_checkpoint(folder.path / kCaptures / cat("step_{:08d}", step));
  CHECK(captured.step == step - 1);
  CHECK(captured.user["capture"]["samples"].size() == 16);
  const auto device = open_backend();
  const StepReplay replay = replay_step(*device, config, captured, step);
  CHECK(replay.repeated == 0);
  CHECK_FALSE(replay.finite);
  CHECK(contains(replay.first_non_finite, " of op '"));
  CHECK(captured.user["capture"]["samples"] == json(replay.samples));
  CHECK(captured.user["capture"]["neighbors"] == json(replay.neighbors));
}

namespace {

/// Finds the gradients of the given calls, counted from 1, not finite.
class Spoiling final : public CpuBackend {
 public:
  explicit Spoiling(std::set<int> calls) : calls_(std::move(calls)) {}
  void all_finite(const AllFinite& args) override {
    CpuBackend::all_finite(args);
    if (calls_.count(++call_)) *args.flag.as<int32_t>() = 0;
  }

 private:
  std::set<int> calls_;
  int call_ = 0;
};

void run_spoiled(const Config& config, const fs::path& out, const std::set<int>& calls, int steps_in_flight) {
  fs::create_directories(out);
  log_configure(0, 1, true);
  set_compute_threads(1);
  Device device(std::make_unique<Spoiling>(calls));
  const auto comm = Comm::local();
  RunOptions options;
  options.out = out;
  options.steps_in_flight = steps_in_flight;
  setenv("CSML_EAGER", "1", 1);  // every step is calls of the backend
  pretrain(device, *comm, config, options);
  unsetenv("CSML_EAGER");
}

}  // namespace

TEST_CASE("a step that is not finite is found out with the next one under way, as without it") {
  if (backend_under_test() != "cpu") return;  // spoils the CPU's gradients
  const Folder folder;
  Config config = tiny("csml", 2);
  config.train.log_every_steps = 100;
  const fs::path alone = folder.path / "alone", followed = folder.path / "followed", clean = folder.path / "clean";
  run_spoiled(config, alone, {3, 7, 8}, 1);
  // Call 4 is step 4 in vain behind step 3, call 5 its second try; 9 and 10 so for step 8; 11 and 12 for step 9.
  run_spoiled(config, followed, {3, 8, 10}, 2);
  check_equal(alone, followed, 10);
  CHECK(open_checkpoint(checkpoint(followed, 10)).user["skipped_steps"] == 3);
  for (const int step : {3, 7}) {
    const auto captured = [&](const fs::path& out) {
      const fs::path of = out / kCaptures / cat("step_{:08d}", step);
      return slurp(of / "model.safetensors") + slurp(of / "state.safetensors") +
             open_checkpoint(of).user["capture"].dump();
    };
    const bool equal = captured(alone) == captured(followed);
    CHECK_MESSAGE(equal, step);
  }
  for (const fs::path& out : {alone, followed}) {
    const std::vector<json> found = events(out, "non_finite"), steps = metrics(out, "step");
    REQUIRE(found.size() == 2);
    CHECK(contains(found[0]["text"].get<std::string>(), "step 3:"));
    CHECK(contains(found[1]["text"].get<std::string>(), "step 7:"));
    REQUIRE(steps.size() == 2);
    for (const json& line : steps) CHECK(line["finite"] == false);
    CHECK(steps[0]["skipped_steps"] == 1);
    CHECK(steps[1]["skipped_steps"] == 3);
  }
  // A line for each step: no step in vain leaves its losses in the next one's line.
  config.train.log_every_steps = 1;
  run_spoiled(config, folder.path / "alone, told", {3, 7, 8}, 1);
  run_spoiled(config, folder.path / "followed, told", {3, 8, 10}, 2);
  const std::vector<json> one = metrics(folder.path / "alone, told", "step"),
                          two = metrics(folder.path / "followed, told", "step");
  REQUIRE(one.size() == 10);
  REQUIRE(two.size() == 10);
  for (size_t i = 0; i < one.size(); ++i) {
    for (const char* key : {"step", "epoch", "loss", "loss_terms", "positive_similarity", "negative_similarity", "lr",
                            "lambda", "weights", "feature_spread", "finite", "skipped_steps", "queue_fill"})
      CHECK_MESSAGE(one[i][key] == two[i][key], cat("step {}: {}", i + 1, key));
    CHECK(one[i]["finite"] == (i != 2 && i != 6 && i != 7));
  }
  config.train.log_every_steps = 100;
  run_spoiled(config, clean, {}, 2);
  run(config, folder.path / "usual");
  check_equal(clean, folder.path / "usual", 10);
  const bool same = bytes_of(clean, 10) == bytes_of(alone, 10);
  CHECK_FALSE(same);
}

TEST_CASE("replay: any step comes out as it did, from a checkpoint long before it") {
  const Folder folder;
  const Config config = tiny("csml", 4);
  run(config, folder.path);
  const auto device = open_backend();
  const std::vector<json> steps = metrics(folder.path, "step");
  for (const int64_t step : {1, 7, 18}) {  // 18: behind two refreshes
    const StepReplay replay = replay_step(*device, config, open_checkpoint(checkpoint(folder.path, 0)), step);
    CHECK(replay.repeated == step - 1);
    CHECK(replay.finite);
    CHECK(replay.first_non_finite.empty());
    const json& told = steps[static_cast<size_t>(step - 1)];
    CHECK(told["step"] == step);
    for (const char* key : {"loss", "loss_terms", "positive_similarity", "feature_spread", "lr"})
      CHECK(replay.measured[key] == told[key]);
  }
  CHECK(contains(error_of([&] { replay_step(*device, config, open_checkpoint(checkpoint(folder.path, 0)), 21); }),
                 "after the run's end, which is at step 20"));
}

TEST_CASE("a damaged newest checkpoint is refused by name and the one before is used") {
  const Folder folder;
  Config config = tiny("csml", 3);
  config.eval.knn_every_epochs = 0;  // the best k-NN would have a checkpoint of its own
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
