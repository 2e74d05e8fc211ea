// Timing of repeated work, and the parts of `csml bench`.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/device.h"

namespace csml {

/// How long something is timed: `windows` windows of about `seconds` or more each, after `warmup` calls.
struct BenchOptions {
  int windows = 5, warmup = 2;
  double seconds = 1;
};

/// Milliseconds of one call: median, least and largest of the windows.
struct Timing {
  double ms = 0, ms_min = 0, ms_max = 0;
  int windows = 0;
  nlohmann::json json() const { return {{"ms", ms}, {"ms_min", ms_min}, {"ms_max", ms_max}, {"windows", windows}}; }
};
/// work: calls on `device`, which every window waits for.
Timing measure(const BenchOptions& options, Device& device, const std::function<void()>& work);

/// Every timing case of the kernel table whose op is `op` ("all": every one), against the machine's measured copy
/// bandwidth and matrix-product rate: {"case": "kernels", "bandwidth_gb_s", "peak_gflop_s", "ops": [{…}]}.
nlohmann::json bench_kernels(Device& device, const std::string& op, bool cifar, int64_t batch,
                             const BenchOptions& options);

/// For the same cases with activations in `type`: bytes, FLOPs and the time below which no card can come whose peaks
/// are published: {"case": "floors", "batch", "dtype", "floors": [{"op", "detail", "bytes", "flops", "cards": {NAME:
/// {"us", "bound"}}}]}. Needs no card.
nlohmann::json bench_floors(const std::string& op, bool cifar, int64_t batch, DType type);
/// As a table in Markdown.
std::string floors_table(const nlohmann::json& json);

}  // namespace csml
