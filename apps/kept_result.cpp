#include "apps/kept_result.h"

#include <chrono>
#include <cmath>
#include <ctime>
#include <filesystem>

#include "engine/file.h"
#include "engine/json.h"
#include "engine/log.h"
#include "version.h"

namespace csml {
namespace fs = std::filesystem;
namespace {

std::string date_now() {
  const std::time_t now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  std::tm utc{};
  ::gmtime_r(&now, &utc);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc);
  return text;
}

/// The run folder that a checkpoint RUN/checkpoints/NAME or RUN/best lies in; empty where it is none.
fs::path run_of(const nlohmann::json& result) {
  const auto found = result.find("checkpoint");
  if (found == result.end() || !found->is_string()) return {};
  std::error_code error;
  const fs::path checkpoint = fs::weakly_canonical(found->get<std::string>(), error), folder = checkpoint.parent_path();
  if (error) return {};
  const fs::path run = folder.filename() == "checkpoints" ? folder.parent_path()
                       : checkpoint.filename() == "best"  ? folder
                                                          : fs::path();
  return !run.empty() && fs::exists(run / "config.toml", error) ? run : fs::path();
}

std::string file_name(const nlohmann::json& result) {
  std::string asked;
  for (const char* key : {"checkpoint_xxh3_128", "train", "test", "protocol", "shift", "k", "n_train"})
    asked += cat("{}={}\n", key, result.contains(key) ? json_line(result[key]) : "");
  return cat("{}-{}.json", result.value("task", "result"), digest_of(asked.data(), asked.size()).hex.substr(0, 8));
}

/// The file it was kept as, or nothing.
std::string keep(const nlohmann::json& result) {
  const fs::path run = run_of(result);
  if (run.empty()) return "";
  const fs::path path = run / kResultsFolder / file_name(result);
  try {
    fs::create_directories(path.parent_path());
    write_text_file(path, result.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
    return path.string();
  } catch (const std::exception& e) { log_warn(cat("the result is not kept in its run: {}", e.what())); }
  return "";
}

}  // namespace

double accuracy_error(double percent, int64_t n) {
  const double p = percent / 100;
  return n > 0 && p >= 0 && p <= 1 ? 100 * std::sqrt(p * (1 - p) / static_cast<double>(n)) : 0;
}

void answer_result(const CommonOptions& options, nlohmann::json result, const std::string& text) {
  result["version"] = kVersion;
  result["commit"] = kCommit;
  result["date"] = date_now();
  double error = 0;
  if (result.contains("top1") && result["top1"].is_number() && result.contains("n_test"))
    error = accuracy_error(result["top1"].get<double>(), result["n_test"].get<int64_t>());
  result["standard_error"] = error > 0 ? nlohmann::json(error) : nlohmann::json();
  const std::string kept = options.keep ? keep(result) : "";
  answer(options, result,
         text +
             (error > 0 ? cat("top-1 {:.2f} ± {:.2f} % (standard error of {} test images)\n",
                              result["top1"].get<double>(), error, result["n_test"].get<int64_t>())
                        : "") +
             (kept.empty() ? "" : cat("kept in {}\n", kept)));
}

}  // namespace csml
