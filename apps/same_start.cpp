#include "apps/same_start.h"

#include <set>

#include "csml/config/table.h"
#include "engine/json.h"
#include "engine/text.h"
#include "version.h"

namespace csml {

namespace {

const std::set<std::string> kMayDiffer{"data.train",    "data.test",     "data.workers",
                                       "data.prefetch", "train.threads", "train.device"};

/// The first difference between what two processes were started with: "schedule.lr = 0.1 … 0.03"; empty: none.
std::string difference(const nlohmann::json& first, const nlohmann::json& other) {
  for (const char* key : {"version", "commit"})
    if (first[key] != other[key])
      return cat("its program's {} is {}, rank 0's {}", key, other[key].dump(), first[key].dump());
  for (const auto& [section, keys] : first["config"].items())
    for (const auto& [name, value] : keys.items()) {
      const std::string key = section + "." + name;
      if (kMayDiffer.contains(key) || other["config"][section][name] == value) continue;
      return cat("its {} is {}, rank 0's {}", key, printable(other["config"][section][name].dump(), 200),
                 printable(value.dump(), 200));
    }
  return "";
}

}  // namespace

void check_same_start(const Config& config, Device& device, Comm& comm) {
  if (comm.size() == 1) return;
  const nlohmann::json mine{{"version", kVersion}, {"commit", kCommit}, {"config", to_json(config)}};
  const std::vector<std::string> all =
      gather_text(comm, device, mine.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  const nlohmann::json first = nlohmann::json::parse(all[0]);
  for (size_t rank = 1; rank < all.size(); ++rank)
    if (const std::string what = difference(first, nlohmann::json::parse(all[rank])); !what.empty())
      throw UsageError(
          cat("rank {} was started differently: {}; give every process the same program, flags, "
              "configuration and CSML_* environment",
              rank, what));
}

}  // namespace csml
