// The pretraining run: data, method, schedule, refreshes, online evaluation, log and checkpoints.
#pragma once

#include <atomic>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>

#include "csml/config/config.h"
#include "engine/comm.h"
#include "engine/device.h"

namespace csml {

enum class ResumeMode { automatic, never };

struct RunOptions {
  std::filesystem::path out;  // run folder; must exist and hold config.toml etc. (apps/pretrain.cpp writes them)
  ResumeMode resume = ResumeMode::automatic;
  std::filesystem::path resume_from;        // a checkpoint folder or a run folder; empty: `out`
  std::filesystem::path init_from;          // torchvision-named weights to start both encoders from; may be empty
  const std::atomic<bool>* stop = nullptr;  // set by a signal handler: finish the step, write a checkpoint, return
  std::function<void(const std::string&)> phase;  // told what the run does from now on; may be empty
  int steps_in_flight = 0;                        // at most (csml/training/steps_in_flight.h); 0: as the device wants
};

struct RunResult {
  int64_t steps = 0, epochs = 0;
  bool stopped = false;        // by `stop` or train.max_hours, with something left to do
  std::optional<double> loss;  // mean of the last line of metrics.jsonl; none where no step was taken
  int64_t non_finite = 0;      // last steps in a row without a finite gradient, which changed nothing
  double knn_top1 = -1;        // last online k-NN, percent; -1: none
  int64_t bad_images = 0;
  double seconds = 0;
  std::filesystem::path checkpoint;  // newest
  double best_top1 = -1;             // of the online k-NN, percent: the checkpoint in `out`/best; -1: none
  int64_t best_epoch = 0;            // after so many epochs
};

/// Checkpoints are written by a thread while training goes on; one that cannot be written is told and tried again.
/// Throws Error where the run cannot go on, and where its first or last checkpoint cannot be written.
RunResult pretrain(Device& device, Comm& comm, const Config& config, const RunOptions& options);

}  // namespace csml
