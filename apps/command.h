// What every subcommand is to main: a function that adds its options to a CLI11 app and returns what to run.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/comm.h"
#include "engine/json.h"

namespace csml {

inline constexpr int kExitStopped = 75;  // stopped, with a checkpoint: run the same command again

/// Runs a parsed subcommand; returns the exit code.
using Command = std::function<int()>;

Command pretrain_command(CLI::App& app, const std::vector<std::string>& arguments);
Command knn_command(CLI::App& app);
Command linear_command(CLI::App& app);
Command finetune_command(CLI::App& app, const std::vector<std::string>& arguments);
Command svm_command(CLI::App& app);
Command embed_command(CLI::App& app);
Command neighbors_command(CLI::App& app);
Command import_command(CLI::App& app);
Command export_command(CLI::App& app);
Command inspect_command(CLI::App& app);
Command pack_command(CLI::App& app);
Command bench_command(CLI::App& app);
Command doctor_command(CLI::App& app);
Command replay_command(CLI::App& app);
Command report_command(CLI::App& app);

/// Options that every subcommand has.
struct CommonOptions {
  bool json = false, quiet = false;
  int threads = 0;
  bool keep = true;  // of evaluations: their results in the run (apps/kept_result.h)
};
/// --json, --quiet and, where `threads`, --threads.
/// --no-keep, of evaluations.
void add_keep_option(CLI::App& app, CommonOptions& options);
void add_common_options(CLI::App& app, CommonOptions& options, bool threads = true);
/// Puts them into effect, for one of the processes of a job.
void start(const CommonOptions& options, const Launch& launch = {});

/// The one answer of a command on standard output: `json` as one line under --json, else `text`.
void answer(const CommonOptions& options, const nlohmann::json& json, const std::string& text);

/// The device of this process by what was asked for: of several processes on one machine each takes the card of its
/// number, or the only one it sees.
std::string device_of(const std::string& asked, const Launch& job);

}  // namespace csml
