// Timing of repeated work, and the parts of `csml bench`.
#pragma once

#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "apps/exchange.h"
#include "engine/device.h"

namespace csml {

/// How long something is timed: `windows` windows of about `seconds` or more each, after `warmup` calls.
struct BenchOptions {
  int windows = 5, warmup = 3;  // the third step is recorded
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

/// A training step, or a part of one, that is timed and that another implementation can repeat from the same start.
class BenchWork {
 public:
  virtual ~BenchWork() = default;
  /// Once more. May return before the device is done.
  virtual void run() = 0;
  /// What the first run starts from; to be called before it.
  virtual void put_inputs(Exchange& exchange) = 0;
  /// What the run before made. False where it changed nothing because loss scaling met an overflow: run again.
  virtual bool put_results(Exchange& exchange) = 0;
  /// Images per run; 0: it is not about images.
  virtual int64_t images() const { return 0; }
  /// Device calls of one recorded run; 0 before it is recorded.
  virtual int64_t calls() const = 0;
  /// What else is to be said of it: sizes, element type.
  virtual nlohmann::json about() const = 0;
};

/// What `--step` and `--part` are told.
struct WorkOptions {
  std::string name{}, preset = "cifar10-small", data = "synthetic:shapes";
  std::string precision{};         // fp32 | bf16 | fp16; empty: the preset's, fp32
  std::vector<std::string> set{};  // KEY=VALUE
  std::vector<int64_t> size{};     // of a part
  int batch = 0;                   // 0: the default
  double buckets = 0;              // MiB of bench_buckets(); 0: none
  bool given = false;              // normalised images that are on the device already
};

/// The precision of what has no preset: as asked, else fp32.
inline std::string bench_precision(const WorkOptions& options) {
  return options.precision.empty() ? "fp32" : options.precision;
}

/// Supervised steps on random images: resnet50 (224 px), resnet18, resnet18_cifar (32 px). Steps of a method: moco,
/// csml; by a preset on the first batch of a data set, or on given images. Throws UsageError, also for 16 bits on the
/// CPU.
std::unique_ptr<BenchWork> make_step(Device& device, const WorkOptions& options);

/// The supervised step with its gradients' reductions in buckets of options.buckets MiB, each replaced by a copy of
/// equal bytes on a second stream: what of their time the step, which takes `without` alone, does not hide.
nlohmann::json bench_buckets(Device& device, const WorkOptions& options, const BenchOptions& bench,
                             const Timing& without);

/// Parts of a step, by size (UsageError for another number of sizes, and for 16 bits on the CPU):
///   info_nce  B,K,D,P   multi-positive InfoNCE of B queries, K queue rows, D dimensions, P positives, with gradient;
///                       in 16 bits all rows are in that type, the loss and the gradient that is kept are f32
///   top_k     M,N,D,K   the K nearest of N rows for each of M queries; in 16 bits all rows are, scores are f32
///   commit    N         finite check, SGD with momentum and momentum encoder over N parameters; in 16 bits also the
///                       copies of both that networks read, in fp16 gradients are scaled by 65536 and the scale is kept
std::unique_ptr<BenchWork> make_part(Device& device, const WorkOptions& options);

/// `count` standard normal values; element i is draw (i + 7919 offset) mod 1048573 of one stream, so that large arrays
/// cost little.
std::vector<float> bench_noise(int64_t count, int64_t offset);

}  // namespace csml
