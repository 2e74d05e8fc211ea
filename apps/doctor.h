// The parts of `csml doctor`: each check is one finding.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/comm.h"

namespace csml {

enum class Health { ok, warn, fail };

/// One check: what was found and, where it is not ok, what to set.
struct Finding {
  std::string check{};
  Health health = Health::ok;
  std::string text{}, advice{};    // advice is empty where all is well
  nlohmann::json value = nullptr;  // the number behind the text, where there is one
};

/// What an operating system says of itself and of this process. Bytes; 0 where there is no limit.
struct Machine {
  std::string processor{};
  int cores = 1, allowed_cores = 1;                             // of the machine; those this process may run on
  double quota_cores = 0;                                       // of its control group
  double load = 0;                                              // runnable threads, mean of the last minute
  uint64_t memory = 0, available_memory = 0, memory_limit = 0;  // the limit is the control group's
  bool has_shm = false;
  uint64_t shm = 0, shm_free = 0;                                                // /dev/shm
  uint64_t open_files = 0, locked_memory = 0, file_size = 0, address_space = 0;  // limits of this process
  std::string omp_threads{}, waits{};                                            // environment; empty: not set
  std::vector<std::string> switches{};  // CSML_… that are for looking for mistakes
  double unix_time = 0;
};
/// Cores that the control groups of this process grant it; 0 where they set no limit. Files under `root`.
double quota_cores(const std::filesystem::path& root = "/");
/// As it is; files under `root` (a test gives another one).
Machine read_machine(const std::filesystem::path& root = "/");
/// What is worth saying of a machine, for `processes` of a job on it that use `threads` each, with a card or not.
std::vector<Finding> examine_machine(const Machine& machine, int processes, int threads, bool with_card);

/// A folder that checkpoints go to: whether whole files can be written there, how fast, how much room there is. The
/// folder is made where it is absent, and removed again.
std::vector<Finding> examine_folder(const std::filesystem::path& folder, int64_t bytes);

/// A data set: whether it opens, what part of it can be read, images per second that `threads` threads decode in
/// `seconds`.
std::vector<Finding> examine_data(const std::string& spec, int threads, double seconds);

}  // namespace csml
