// A run folder before training starts: is a run in it, may it be resumed, and the files that describe it.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "apps/config.h"
#include "data/dataset.h"
#include "engine/device.h"

namespace csml {

/// Whether a run was started in this folder.
bool holds_run(const std::filesystem::path& folder);

/// Whether csml pretrain described a run there that got to no step and no weights: config.toml, command.txt and
/// environment.json are all there, no weights, and metrics.jsonl tells of nothing but the start. Such a folder holds
/// nothing that a new run could lose; any other one may.
bool is_start_without_training(const std::filesystem::path& folder);

/// Removes what a run writes (and nothing else) from a folder.
void clear_run(const std::filesystem::path& folder);

/// Throws Error that names the first key in which the run (or checkpoint folder) there differs from `config`, unless
/// the key changes nothing in what is computed (loader threads, log intervals, the place of the same images, …).
void check_resumable(const std::filesystem::path& folder, const Config& config);

/// Creates the folder where it is missing and writes config.toml, command.txt (one line per start) and
/// environment.json, each whole or not at all. Throws Error when the folder cannot be written.
void describe_run(const std::filesystem::path& folder, const ResolvedConfig& resolved,
                  const std::vector<std::string>& arguments, const Device& device, int processes, const Dataset& train);

/// The arguments as a line that a shell reads back.
std::string shell_line(const std::vector<std::string>& arguments);

}  // namespace csml
