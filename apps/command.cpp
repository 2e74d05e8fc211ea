#include "apps/command.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "apps/doctor.h"
#include "engine/device.h"
#include "engine/log.h"
#include "engine/text.h"
#include "kernels/check.h"

namespace csml {

void add_common_options(CLI::App& app, CommonOptions& options, bool threads) {
  app.add_flag("--json", options.json, "Print exactly one JSON object on standard output");
  app.add_flag("--quiet", options.quiet, "No progress and no information on standard error");
  if (threads) {
    app.add_option("--threads", options.threads,
                   "Compute threads of the CPU; 0: OMP_NUM_THREADS, else the cores to be had")
        ->check(CLI::Range(0, 4096))
        ->type_name("N")
        ->capture_default_str();
  }
}

void add_keep_option(CLI::App& app, CommonOptions& options) {
  app.add_flag("!--no-keep", options.keep, "Do not keep the result in the run folder (RUN/eval) that is judged");
}

void start(const CommonOptions& options, const Launch& launch) {
  log_configure(launch.rank, launch.size, options.quiet);
  if (options.threads > 0) set_compute_threads(options.threads);  // else OMP_NUM_THREADS, else the cores to be had
  // Slurm binds a task to the cores it was given.
  const bool chosen = options.threads > 0 || std::getenv("OMP_NUM_THREADS") || std::getenv("SLURM_CPUS_PER_TASK");
  // A container's share of the processor: threads beyond it would only use it up earlier in every period.
  if (const double quota = chosen ? 0 : quota_cores(); quota > 0)
    set_compute_threads(std::clamp(static_cast<int>(std::ceil(quota)), 1, compute_threads()));
  if (!chosen && launch.local_size > 1)  // the cores this process may use, shared with the others of this machine
    set_compute_threads(std::max(1, compute_threads() / launch.local_size));
}

std::string device_of(const std::string& asked, const Launch& job) {
  const int cards = job.local_size > 1 && (asked == "cuda" || asked == "auto") ? usable_cards() : 0;
  if (cards == 0) return asked;
  return cat("cuda:{}", cards == 1 ? 0 : job.local_rank);
}

void answer(const CommonOptions& options, const nlohmann::json& json, const std::string& text) {
  const std::string line = options.json ? json_line(json) + "\n" : printable(text, std::string::npos, true);
  const bool written = std::fwrite(line.data(), 1, line.size(), stdout) == line.size() && std::fflush(stdout) == 0;
  if (!written) throw Error("cannot write to standard output");
}

}  // namespace csml
