// What the tests of whole runs share: a tiny configuration, a run of it, what it wrote. Include it after the project's
// headers.
#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <vector>

#include "csml/method/resolve.h"
#include "csml/training/train_loop.h"
#include "engine/checkpoint.h"
#include "engine/log.h"

#include "tests/backend.h"
#include "tests/files.h"

namespace csml::test {

/// Five steps an epoch, some milliseconds each.
inline Config tiny(const std::string& method, int epochs) {
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

inline Run run(const Config& config, const std::filesystem::path& out, const std::atomic<bool>* stop = nullptr,
               const std::filesystem::path& init_from = {}, std::function<void(const std::string&)> phase = {},
               const std::filesystem::path& resume_from = {}) {
  std::filesystem::create_directories(out);
  log_configure(0, 1, true);
  set_compute_threads(1);  // threads only wait for each other in layers this small
  const auto device = open_backend();
  const auto comm = Comm::local();
  RunOptions options;
  options.out = out;
  options.stop = stop;
  options.init_from = init_from;
  options.phase = std::move(phase);
  options.resume_from = resume_from;
  Run r;
  r.result = pretrain(*device, *comm, config, options);
  r.memory = device->stats();
  return r;
}

inline std::vector<nlohmann::json> lines_of(const std::filesystem::path& file) {
  std::vector<nlohmann::json> lines;
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) lines.push_back(nlohmann::json::parse(line));
  return lines;
}

/// The lines of a kind ("step", "epoch", "eval", "event") of a run.
inline std::vector<nlohmann::json> metrics(const std::filesystem::path& out, const std::string& kind) {
  std::vector<nlohmann::json> lines = lines_of(out / "metrics.jsonl");
  std::erase_if(lines, [&](const nlohmann::json& line) { return line["kind"] != kind; });
  return lines;
}

inline std::vector<nlohmann::json> events(const std::filesystem::path& out, const std::string& name) {
  std::vector<nlohmann::json> lines = metrics(out, "event");
  std::erase_if(lines, [&](const nlohmann::json& line) { return line["event"] != name; });
  return lines;
}

inline std::filesystem::path checkpoint(const std::filesystem::path& out, int64_t step) {
  return out / "checkpoints" / cat("step_{:08d}", step);
}

/// Encoders, optimizer, queue and neighbour table after `step` steps, byte by byte.
inline std::string bytes_of(const std::filesystem::path& out, int64_t step) {
  return slurp(checkpoint(out, step) / "model.safetensors") + slurp(checkpoint(out, step) / "state.safetensors");
}

inline void check_equal(const std::filesystem::path& a, const std::filesystem::path& b, int64_t step) {
  const bool equal = bytes_of(a, step) == bytes_of(b, step);
  CHECK_MESSAGE(equal, cat("{} and {} differ at step {}", a.string(), b.string(), step));
}

}  // namespace csml::test
