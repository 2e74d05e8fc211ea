// csml bench --op: the timing cases of the kernel table (tests/op_cases.h) against the roofline of this machine, or
// what the published rooflines of cards allow.
#include <algorithm>
#include <array>
#include <set>

#include "apps/bench.h"
#include "engine/log.h"
#include "engine/nearest.h"
#include "engine/ops.h"
#include "tests/op_cases.h"

namespace csml {
namespace {

struct Roofline {
  double bytes_per_second = 0, flops_per_second = 0;
  /// The least time that the machine allows, seconds.
  double seconds(double bytes, double flops) const {
    return std::max(bytes / bytes_per_second, flops / flops_per_second);
  }
};

/// Peaks of a card as its data sheet has them. `matrix`: dense products of 16-bit factors with sums in f32; `plain`:
/// everything else, in f32.
struct Card {
  const char* name;
  Roofline matrix, plain;
};
constexpr std::array<Card, 2> kCards = {{{"H100", {3.35e12, 989e12}, {3.35e12, 67e12}},        // SXM, 80 GB of HBM3
                                         {"A100", {2.039e12, 312e12}, {2.039e12, 19.5e12}}}};  // SXM, 80 GB of HBM2e

bool uses_matrix_units(const std::string& op) {
  return op.starts_with("conv2d") || op == "matmul" || op == "info_nce" || op == "top_k";
}

/// The timing cases of one op, or of "all".
std::vector<test::OpCase> cases_of(const std::string& op, bool cifar, int64_t batch) {
  std::vector<test::OpCase> cases = test::bench_cases(cifar, batch);
  std::set<std::string> names;
  for (const test::OpCase& op_case : cases) names.insert(op_case.op);
  if (op != "all" && !names.contains(op))
    throw UsageError(cat("--op {}: no such op{}", op,
                         suggestion(op, {names.begin(), names.end()}, cat("; known are {}", fmt::join(names, ", ")))));
  if (op != "all") std::erase_if(cases, [&](const test::OpCase& op_case) { return op_case.op != op; });
  return cases;
}

Roofline measure_roofline(Device& device, const BenchOptions& options) {
  const NoGrad no_grad;
  constexpr int64_t kElements = int64_t{64} << 20;  // 256 MiB: far beyond the caches
  constexpr int64_t kSide = 2048;
  Roofline roofline;
  {
    const Tensor from = Tensor::full(device, {kElements}, 1.f), to = like(from);
    const Timing timing = measure(options, device, [&] { copy(from, to); });
    roofline.bytes_per_second = 2.0 * static_cast<double>(from.bytes()) / (timing.ms_min * 1e-3);
  }
  const Var a(Tensor::full(device, {kSide, kSide}, 0.5f)), b(Tensor::full(device, {kSide, kSide}, 0.25f));
  const Timing timing = measure(options, device, [&] { linear(a, b, {}); });
  roofline.flops_per_second = 2.0 * kSide * kSide * kSide / (timing.ms_min * 1e-3);
  return roofline;
}

nlohmann::json time_case(Device& device, const test::OpCase& op_case, const Roofline& roofline,
                         const BenchOptions& options) {
  std::vector<Tensor> memory;
  test::Bound bound;
  const test::Arrays inputs = op_case.inputs(false);
  for (const test::Arg& arg : op_case.args) {
    memory.emplace_back(device, arg.shape, arg.dtype);
    if (const auto found = inputs.find(arg.name); found != inputs.end())
      memory.back().upload_bytes(test::to_bytes(found->second).data());
    bound.add(arg.name, memory.back());
  }
  const Timing timing = measure(options, device, [&] { op_case.call(device.backend(), bound); });
  const double seconds = timing.ms * 1e-3, bytes = op_case.bytes();
  nlohmann::json json = timing.json();
  json.update({{"op", op_case.op},
               {"detail", op_case.detail},
               {"bytes", bytes},
               {"flops", op_case.flops},
               {"gb_s", bytes / seconds * 1e-9},
               {"gflop_s", op_case.flops / seconds * 1e-9},
               {"roofline_share", roofline.seconds(bytes, op_case.flops) / seconds}});
  return json;
}

}  // namespace

nlohmann::json bench_kernels(Device& device, const std::string& op, bool cifar, int64_t batch,
                             const BenchOptions& options) {
  const std::vector<test::OpCase> cases = cases_of(op, cifar, batch);
  const Roofline roofline = measure_roofline(device, options);
  nlohmann::json ops = nlohmann::json::array();
  Progress progress("bench", static_cast<int64_t>(cases.size()), "cases");
  for (const test::OpCase& op_case : cases) {
    ops.push_back(time_case(device, op_case, roofline, options));
    progress.update(static_cast<int64_t>(ops.size()), op_case.op);
  }
  progress.finish();
  return {{"case", "kernels"},
          {"batch", batch},
          {"network", cifar ? "resnet18 at 32 px" : "resnet50 at 224 px"},
          {"bandwidth_gb_s", roofline.bytes_per_second * 1e-9},
          {"peak_gflop_s", roofline.flops_per_second * 1e-9},
          {"ops", std::move(ops)}};
}

nlohmann::json bench_floors(const std::string& op, bool cifar, int64_t batch, DType type) {
  nlohmann::json ops = nlohmann::json::array();
  for (const test::OpCase& in_f32 : cases_of(op, cifar, batch)) {
    // Gradients and queues are f32 in 16-bit training too.
    const bool stays = in_f32.op == "all_finite" || in_f32.op == "ring_write";
    const test::OpCase op_case = stays ? in_f32 : test::in_type(in_f32, type).value_or(in_f32);
    const bool matrix = uses_matrix_units(op_case.op) && size_of(type) == 2;
    const double bytes = op_case.bytes();
    nlohmann::json row = {
        {"op", op_case.op}, {"detail", in_f32.detail}, {"bytes", bytes}, {"flops", op_case.flops}, {"cards", {}}};
    for (const Card& card : kCards) {
      const Roofline& roofline = matrix ? card.matrix : card.plain;
      const bool memory = bytes / roofline.bytes_per_second >= op_case.flops / roofline.flops_per_second;
      row["cards"][card.name] = {{"us", 1e6 * roofline.seconds(bytes, op_case.flops)},
                                 {"bound", memory ? "bytes" : "FLOPs"}};
    }
    ops.push_back(std::move(row));
  }
  return {{"case", "floors"}, {"batch", batch}, {"dtype", name_of(type)}, {"floors", std::move(ops)}};
}

std::string floors_table(const nlohmann::json& json) {
  std::string head = "| call | shape | MB | GFLOP |", line = "| --- | --- | ---: | ---: |";
  for (const Card& card : kCards) {
    head += cat(" {}, us | bound by |", card.name);
    line += " ---: | --- |";
  }
  std::string text = head + "\n" + line + "\n";
  for (const nlohmann::json& row : json["floors"]) {
    text += cat("| `{}` | {} | {:.4g} | {:.4g} |", row["op"].get<std::string>(), row["detail"].get<std::string>(),
                1e-6 * row["bytes"].get<double>(), 1e-9 * row["flops"].get<double>());
    for (const Card& card : kCards) {
      const nlohmann::json& floor = row["cards"][card.name];
      text += cat(" {:.3g} | {} |", floor["us"].get<double>(), floor["bound"].get<std::string>());
    }
    text += "\n";
  }
  return text;
}

}  // namespace csml
