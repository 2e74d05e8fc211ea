// Checkpoints and metrics: round trips, every kind of damage refused by name, interrupted and failing writers.
#include "engine/checkpoint.h"
#include "engine/log.h"
#include "kernels/random.h"

#include "tests/files.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cmath>
#include <cstring>

using namespace csml;
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

const std::vector<float> kFloats = {1.f, -2.5f, 3.25f, 0.f, 1e-30f, 6.f};
const std::vector<int64_t> kLongs = {1, -2, INT64_MAX};

CheckpointContent content_of(int64_t step, std::vector<float>& values) {
  values.assign(500, static_cast<float>(step));
  return {
      .step = step,
      .epoch = step / 10,
      .model = {{"layer1.weight", DType::f32, Shape{20, 25}, values.data()}},
      .state = {{"momentum", DType::f32, Shape{500}, values.data()}, {"longs", DType::i64, Shape{3}, kLongs.data()}},
      .user = {{"seed", 7}, {"name", "run"}}};
}

void save_step(CheckpointStore& store, int64_t step, bool milestone = false) {
  std::vector<float> values;
  CheckpointContent content = content_of(step, values);
  content.milestone = milestone;
  store.save(content);
}

}  // namespace

TEST_CASE("checkpoint: round trip, layout, latest and permissions") {
  const Folder run;
  const mode_t before = ::umask(027);
  std::vector<float> values;
  {
    CheckpointStore store(run.path, {});
    CHECK(!store.load_newest());
    store.save(content_of(12000, values));
  }
  ::umask(before);
  const fs::path folder = run.path / "checkpoints" / "step_00012000";
  CHECK(entries(run.path) == std::vector<std::string>{"checkpoints", "latest"});
  CHECK(entries(folder) == std::vector<std::string>{"manifest.json", "model.safetensors", "state.safetensors"});
  CHECK(slurp(run.path / "latest") == "checkpoints/step_00012000\n");
  struct stat status;
  REQUIRE(::stat((folder / "model.safetensors").c_str(), &status) == 0);
  CHECK((status.st_mode & 0777) == 0640);
  REQUIRE(::stat(folder.c_str(), &status) == 0);
  CHECK((status.st_mode & 0777) == 0750);

  const std::optional<Checkpoint> got = newest_checkpoint(run.path, [](const std::string&) { CHECK(false); });
  REQUIRE(got);
  CHECK(got->step == 12000);
  CHECK(got->epoch == 1200);
  CHECK(got->user == json({{"seed", 7}, {"name", "run"}}));
  const NamedArray weight = got->model().read("layer1.weight");
  CHECK(weight.shape == Shape{20, 25});
  CHECK(std::memcmp(weight.data.data(), values.data(), weight.data.size()) == 0);
  const NamedArray longs = got->state().read("longs");
  CHECK(std::memcmp(longs.data.data(), kLongs.data(), longs.data.size()) == 0);
}

TEST_CASE(
    "checkpoint: cut off at any length, one bit changed anywhere, a file missing: refused by name, the one before is "
    "used") {
  const Folder run;
  CheckpointStore store(run.path, {});
  save_step(store, 1);
  save_step(store, 2);
  const fs::path folder = run.path / "checkpoints" / "step_00000002";
  const auto damaged = [&](const std::string& name) {
    std::vector<std::string> warnings;
    const auto got = newest_checkpoint(run.path, [&](const std::string& line) { warnings.push_back(line); });
    REQUIRE(got);
    CHECK(got->step == 1);
    REQUIRE(warnings.size() == 1);
    CHECK(contains(warnings[0], "step_00000002"));
    CHECK(contains(warnings[0], name));
  };
  Random random(2, Purpose::test);
  for (const std::string name : {"model.safetensors", "state.safetensors", "manifest.json"}) {
    CAPTURE(name);
    const std::string good = slurp(folder / name);
    const uint32_t size = static_cast<uint32_t>(good.size());
    for (int i = 0; i < 60; ++i) {
      const size_t keep = i < 10   ? static_cast<size_t>(i)
                          : i < 20 ? size - static_cast<size_t>(i - 9)
                                   : random.below(size);
      CAPTURE(keep);
      spill(folder / name, good.substr(0, keep));
      damaged(name);
    }
    for (int i = 0; i < 150; ++i) {
      const size_t at = i < 20 ? static_cast<size_t>(i) : random.below(size);
      CAPTURE(at);
      std::string bad = good;
      bad[at] = static_cast<char>(bad[at] ^ (1 << random.below(8)));
      spill(folder / name, bad);
      damaged(name);
    }
    spill(folder / name, good + "x");
    damaged(name);
    fs::remove(folder / name);
    damaged(name);
    spill(folder / name, good);
  }
  for (const std::string text : {"", "{}", "[]", "null", "{\"format\": \"csml-checkpoint\"}"}) {
    const std::string good = slurp(folder / "manifest.json");
    spill(folder / "manifest.json", text);
    damaged("manifest.json");
    spill(folder / "manifest.json", good);
  }
  CHECK(newest_checkpoint(run.path, [](const std::string&) { CHECK(false); })->step == 2);
}

TEST_CASE("checkpoint: a manifest with a right checksum but wrong entries is refused") {
  const Folder run;
  CheckpointStore store(run.path, {});
  save_step(store, 5);
  const fs::path folder = run.path / "checkpoints" / "step_00000005";
  const json good = json::parse(slurp(folder / "manifest.json"));
  const auto refused = [&](const std::function<void(json&)>& change) {
    json manifest = good;
    change(manifest);
    manifest.erase("manifest_xxh3_128");
    const std::string text = manifest.dump();
    manifest["manifest_xxh3_128"] = digest_of(text.data(), text.size()).hex;
    spill(folder / "manifest.json", manifest.dump(2) + "\n");
    return error_of([&] { open_checkpoint(folder); });
  };
  CHECK(refused([](json&) {}).empty());
  CHECK(contains(refused([](json& m) { m.erase("step"); }), "missing or of the wrong type"));
  for (const json& value : {json("x"), json(1e86), json(0.5), json(true), json(nullptr), json(uint64_t{1} << 63)})
    CHECK(contains(refused([&](json& m) { m["epoch"] = value; }), "missing or of the wrong type"));
  CHECK(contains(refused([](json& m) { m["files"]["state.safetensors"]["bytes"] = -1; }),
                 "missing or of the wrong type"));
  CHECK(contains(refused([](json& m) { m["files"]["state.safetensors"]["bytes"] = 1e86; }), "of the wrong type"));
  CHECK(contains(refused([](json& m) { m["files"].erase("state.safetensors"); }), "missing or of the wrong type"));
  CHECK(contains(refused([](json& m) { m["version"] = 99; }), "format version 99"));
  std::string deep(1000, '[');
  spill(folder / "manifest.json", "{\"a\":" + deep + std::string(1000, ']') + "}");
  CHECK(contains(error_of([&] { open_checkpoint(folder); }), "nested too deeply"));
}

TEST_CASE("checkpoint: what a killed writer left is removed, and the run goes on from the checkpoint before") {
  const Folder run;
  {
    CheckpointStore store(run.path, {});
    save_step(store, 10);
  }
  const fs::path checkpoints = run.path / "checkpoints", left = checkpoints / "step_00000020.tmp-12345";
  fs::create_directory(left);
  spill(left / "model.safetensors.tmp-12345", "partial");
  spill(run.path / "latest.tmp-12345", "checkp");
  spill(run.path / "notes.tmp-1", "somebody else's");
  CHECK(newest_checkpoint(run.path, [](const std::string&) { CHECK(false); })->step == 10);
  CHECK(fs::exists(left));  // readers remove nothing

  CheckpointStore store(run.path, {});
  CHECK(entries(checkpoints) == std::vector<std::string>{"step_00000010"});
  CHECK(entries(run.path) == std::vector<std::string>{"checkpoints", "latest", "notes.tmp-1"});
  CHECK(store.load_newest()->step == 10);

  // Killed between the rename and the update of `latest`: the older one is still named, and good.
  save_step(store, 20);
  spill(run.path / "latest", "checkpoints/step_00000010\n");
  CHECK(store.load_newest()->step == 10);
  for (const std::string text : {"", "nonsense", "step_x", "../../etc"}) {
    spill(run.path / "latest", text);
    CHECK(store.load_newest()->step == 20);
  }
  spill(run.path / "latest", "checkpoints/step_00000099\n");
  CHECK(store.load_newest()->step == 20);
  fs::remove(run.path / "latest");
  CHECK(store.load_newest()->step == 20);
}

TEST_CASE("checkpoint: a second writer is refused, and let in when the first is gone") {
  const Folder run;
  {
    CheckpointStore store(run.path, {});
    CHECK(contains(error_of([&] { CheckpointStore(run.path, {}); }), "in use by another process"));
  }
  CHECK(error_of([&] { CheckpointStore(run.path, {}); }).empty());
}

TEST_CASE("checkpoint: rotation keeps the last ones and milestones, and replaces the same step") {
  const Folder run;
  CheckpointStore store(run.path, {.keep_last = 2});
  for (int64_t step : {1, 2, 3, 4}) save_step(store, step, step == 2);
  CHECK(entries(run.path / "checkpoints") ==
        std::vector<std::string>{"step_00000002", "step_00000003", "step_00000004"});
  save_step(store, 4);
  CHECK(store.load_newest()->step == 4);
  CHECK(entries(run.path / "checkpoints").size() == 3);

  // A damaged one does not take a good one's place.
  fs::remove(run.path / "checkpoints/step_00000004/state.safetensors");
  save_step(store, 5);
  CHECK(fs::exists(run.path / "checkpoints/step_00000003"));
  CHECK(fs::exists(run.path / "checkpoints/step_00000005"));

  // Back to an earlier step: later ones are not touched, and `latest` is what was written last.
  save_step(store, 3);
  CHECK(fs::exists(run.path / "checkpoints/step_00000005"));
  CHECK(store.load_newest()->step == 3);
}

TEST_CASE("checkpoint: a full disk is an error with path and advice; nothing partial stays, the older one is whole") {
  const Folder run;
  CheckpointStore store(run.path, {});
  save_step(store, 1);
  const fs::path first = run.path / "checkpoints/step_00000001";
  const rlim_t model = fs::file_size(first / "model.safetensors"), state = fs::file_size(first / "state.safetensors");
  REQUIRE(model < state);
  // Too small for: a header, the model's data, the state's data, and (the metadata is long) the manifest.
  for (rlim_t limit : {rlim_t{0}, rlim_t{100}, model - 1, state - 1, state}) {
    CAPTURE(limit);
    std::string error;
    {
      const FileSizeLimit full(limit);
      std::vector<float> values;
      CheckpointContent content = content_of(2, values);
      content.user["long"] = std::string(10'000, 'x');
      error = error_of([&] { store.save(content); });
    }
    CAPTURE(error);
    CHECK(contains(error, run.path.string()));
    CHECK(contains(error, "File too large"));
    CHECK(contains(error, "ulimit"));
    CHECK(entries(run.path / "checkpoints") == std::vector<std::string>{"step_00000001"});
    CHECK(entries(run.path) == std::vector<std::string>{"checkpoints", "latest"});
    CHECK(newest_checkpoint(run.path, [](const std::string&) { CHECK(false); })->step == 1);
  }
  save_step(store, 2);
  CHECK(store.load_newest()->step == 2);
}

TEST_CASE("checkpoint: no space left on a real device is reported with advice") {
  if (::access("/dev/full", W_OK) != 0) {
    MESSAGE("skipped: /dev/full is not writable");
    return;
  }
  const Folder folder;
  fs::create_symlink("/dev/full", folder.path / "m.safetensors");
  const HostArray a{"a", DType::f32, Shape{6}, kFloats.data()};
  const std::string error = error_of([&] { write_safetensors(folder.path / "m.safetensors", std::span(&a, 1)); });
  CHECK(contains(error, "No space left on device; free some space"));
  CHECK(contains(error, "/dev/full"));
  CHECK(entries(folder.path) == std::vector<std::string>{"m.safetensors"});
  CHECK(fs::is_symlink(folder.path / "m.safetensors"));
}

TEST_CASE("checkpoint: a run folder that cannot be created is an error with its path") {
  const Folder folder;
  spill(folder.path / "file", "x");
  const std::string error = error_of([&] { CheckpointStore(folder.path / "file" / "run", {}); });
  CHECK(contains(error, "file/run/checkpoints"));
  CHECK(contains(error, "Not a directory"));
}

TEST_CASE("metrics: lines are appended, a torn line is repaired, and resuming drops later steps") {
  const Folder run;
  const fs::path path = run.path / "metrics.jsonl";
  {
    MetricsLog log(path);
    for (int step = 1; step <= 5; ++step)
      log.write({{"kind", "step"}, {"step", step}, {"epoch", 0}, {"loss", step == 3 ? std::nan("") : 0.5}});
    log.write({{"kind", "event"}, {"step", 5}, {"text", "bad \xff byte"}});
    CHECK(contains(error_of([&] { log.write(json::array()); }), "object"));
  }
  std::ofstream(path, std::ios::app) << "{\"kind\":\"step\",\"st";  // a crash in the middle of a write
  MetricsLog log(path);
  CHECK(log.truncate_after_step(3) == 3);
  CHECK(log.truncate_after_step(3) == 0);
  log.write({{"kind", "step"}, {"step", 4}, {"epoch", 0}});
  std::ifstream in(path);
  std::vector<json> lines;
  for (std::string text; std::getline(in, text);) lines.push_back(json::parse(text));
  REQUIRE(lines.size() == 4);
  for (int i = 0; i < 4; ++i) {
    CHECK(lines[i]["step"] == i + 1);
    CHECK(lines[i]["time"].get<double>() > 1.6e9);
  }
  CHECK(lines[2]["loss"].is_null());
  CHECK(entries(run.path) == std::vector<std::string>{"metrics.jsonl"});
}

TEST_CASE("metrics: a full disk is an error that leaves whole lines only") {
  const Folder run;
  MetricsLog log(run.path / "metrics.jsonl");
  log.write({{"step", 1}});
  const std::string before = slurp(log.path());
  std::string error;
  {
    const FileSizeLimit full(before.size() + 10);
    error = error_of([&] { log.write({{"step", 2}}); });
  }
  CHECK(contains(error, "metrics.jsonl"));
  CHECK(slurp(log.path()) == before);
}

TEST_CASE("progress: the line fits any width, and keeps what is done, the time left and the text longest") {
  log_configure(0, 1, true);
  Progress progress("pretrain", 100000, "steps", 0);
  progress.update(40000, "epoch 12 loss 5.123  k-NN 43.2 %  17 bad images");
  const std::string whole = progress.line(100);
  CHECK(whole.size() > 79);
  for (int columns = 1; columns < 130; ++columns)
    CHECK(progress.line(100, columns).size() <= static_cast<size_t>(columns));
  CHECK(progress.line(100, 79) == "40000/100000 steps  2:30 left  epoch 12 loss 5.123  k-NN 43.2 %  17 bad images");
  CHECK(progress.line(100, 77) == "40000/100000  2:30 left  epoch 12 loss 5.123  k-NN 43.2 %  17 bad images");
  CHECK(progress.line(100, 130) == whole);
  progress.finish();
  log_configure(0, 1, false);
}

TEST_CASE("progress: what happens once is left out of rate and estimate") {
  log_configure(0, 1, true);
  Progress progress("pretrain", 1000, "steps", 0);
  progress.update(100);
  progress.leave_out(90);
  CHECK(progress.line(100) == "pretrain  100/1000 steps  10.0 %  10.0 steps/s  1:30 left");
  progress.finish();
  log_configure(0, 1, false);
}

TEST_CASE("progress: the line tells share, rate of the present run and time left") {
  CHECK(duration_text(42) == "0:42");
  CHECK(duration_text(723) == "12:03");
  CHECK(duration_text(3 * 3600 + 245) == "3:04:05");
  CHECK(duration_text(-1) == "0:00");
  log_configure(0, 1, true);
  Progress progress("pretrain", 1000, "images", 200);
  CHECK(progress.line(0) == "pretrain  200/1000 images  20.0 %");
  progress.update(400, "loss 5.12");
  CHECK(progress.line(10) == "pretrain  400/1000 images  40.0 %  20.0 images/s  0:30 left  loss 5.12");
  progress.update(1000);
  CHECK(progress.line(20) == "pretrain  1000/1000 images  100.0 %  40.0 images/s  0:20 taken");
  progress.finish();
  log_configure(0, 1, false);
}
