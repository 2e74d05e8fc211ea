#include "kernels/cuda/conv.h"

#include <array>
#include <cstdlib>
#include <optional>

#include "kernels/cuda/check.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/libraries.h"

namespace csml::cuda {

namespace {

constexpr int kMeasured = 8;                         // candidates that are timed
constexpr int kMeasuredRuns = 3;                     // of each, after one that is not
constexpr size_t kWorkspaceLimit = size_t{1} << 30;  // larger ones only where nothing else runs
constexpr size_t kScratchAlignment = 256;

size_t round_up(size_t bytes) { return (bytes + kScratchAlignment - 1) / kScratchAlignment * kScratchAlignment; }

bool is_aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % kConvAlignment == 0; }

ConvShape check_conv(const char* op, Direction direction, const ConstView& x, const ConstView& w, const ConstView& y,
                     int stride, int pad) {
  CHECK(x.shape.rank() == 4 && w.shape.rank() == 4 && y.shape.rank() == 4,
        "{}: needs images [N,H,W,C] and filters [K,R,S,C], got x {}, w {}, y {}", op, x.shape.text(), w.shape.text(),
        y.shape.text());
  const bool is_weight_gradient = direction == Direction::grad_weight;
  CHECK(x.dtype == y.dtype && (w.dtype == x.dtype || (is_weight_gradient && w.dtype == DType::f32)),
        "{}: element types x {}, w {}, y {}; must be the same", op, name_of(x.dtype), name_of(w.dtype),
        name_of(y.dtype));
  CHECK(x.dtype == DType::f32 || x.dtype == DType::bf16 || x.dtype == DType::f16,
        "{}: element type {}; must be f32, bf16 or f16", op, name_of(x.dtype));
  CHECK(stride >= 1 && pad >= 0, "{}: stride {}, pad {}", op, stride, pad);
  const ConvShape shape{direction,  x.dtype,    x.shape[0], x.shape[1], x.shape[2], x.shape[3],
                        w.shape[0], w.shape[1], w.shape[2], stride,     pad};
  CHECK(shape.h + 2 * pad >= shape.r && shape.w + 2 * pad >= shape.s, "{}: x {} with pad {} is smaller than filter {}",
        op, x.shape.text(), pad, w.shape.text());
  CHECK(w.shape[3] == shape.c && y.shape == (Shape{shape.n, shape.p(), shape.q(), shape.k}),
        "{}: x {} and w {} with stride {} and pad {} do not give y {}", op, x.shape.text(), w.shape.text(), stride, pad,
        y.shape.text());
  return shape;
}

class Event {
 public:
  Event() { CUDA_CHECK(cudaEventCreate(&event_)); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

/// Milliseconds of one run, or nothing where the plan cannot run here.
std::optional<float> measure(cudaStream_t stream, const ConvPlan& plan,
                             const std::function<void(const ConvPlan&)>& run) {
  const Event begin, end;
  try {
    run(plan);
    CUDA_CHECK(cudaEventRecord(begin.get(), stream));
    for (int i = 0; i < kMeasuredRuns; ++i) run(plan);
  } catch (const Error&) { return std::nullopt; }
  CUDA_CHECK(cudaEventRecord(end.get(), stream));
  CUDA_CHECK(cudaEventSynchronize(end.get()));
  float ms = 0;
  CUDA_CHECK(cudaEventElapsedTime(&ms, begin.get(), end.get()));
  return ms / kMeasuredRuns;
}

}  // namespace

size_t Convolutions::Hash::operator()(const ConvShape& shape) const {
  size_t hash = static_cast<size_t>(shape.direction) * 8 + static_cast<size_t>(shape.dtype);
  for (const int64_t value : {shape.n, shape.h, shape.w, shape.c, shape.k, shape.r, shape.s, shape.stride, shape.pad})
    hash = hash * 1000003 + static_cast<size_t>(value);
  return hash;
}

Convolutions::Convolutions(Context& context, Matmuls& matmuls, PlanRules rules)
    : context_(context), matmuls_(matmuls), rules_(rules) {
  cudnnHandle_t handle = nullptr;
  CUDNN_CHECK(cudnn().create(&handle));
  handle_ = {handle, [](void* h) { cudnn().destroy(static_cast<cudnnHandle_t>(h)); }};
  CUDNN_CHECK(cudnn().set_stream(handle, static_cast<cudaStream_t>(context.stream())));
  card_ = Card::present(handle);
}

ConvPlan Convolutions::choose(const ConvShape& shape, size_t staged_bytes,
                              const std::function<void(const ConvPlan&)>& run) {
  CHECK(!context_.is_recording(), "{}: its plan must be chosen before a recording; run the work once before",
        shape.text());
  const ConvGraph graph(shape, card_, rules_);
  std::vector<ConvPlan> plans, large;
  std::string why = "its heuristics propose no engine that csml's rules allow";
  const size_t wanted = rules_.deterministic ? 1 : kMeasured;
  for (int i = 0; i < graph.candidates() && plans.size() < wanted; ++i) {
    ConvPlan plan;
    if (!graph.build(i, plan, why)) continue;
    (plan.workspace_bytes() <= kWorkspaceLimit ? plans : large).push_back(std::move(plan));
  }
  if (plans.empty()) plans = std::move(large);
  CHECK(!plans.empty(), "cuDNN has no plan for {}: {}", shape.text(), why);

  size_t best = 0;
  std::optional<float> best_ms;
  if (plans.size() > 1 && !rules_.deterministic) {
    size_t most = 0;
    for (const ConvPlan& plan : plans) most = std::max(most, plan.workspace_bytes());
    context_.scratch(round_up(most) + staged_bytes);  // grown once, before anything is timed
    for (size_t i = 0; i < plans.size(); ++i) {
      const auto ms = measure(static_cast<cudaStream_t>(context_.stream()), plans[i], run);
      if (ms && (!best_ms || *ms < *best_ms)) best = i, best_ms = ms;
    }
    CHECK(best_ms, "none of cuDNN's {} plans for {} runs on this card", plans.size(), shape.text());
  }
  static const bool tell = std::getenv("CSML_CUDA_PLANS") != nullptr;
  if (tell)
    fmt::print(stderr, "plan: {}: {}, {:.1f} MiB workspace, {} ms\n", shape.text(), plans[best].name(),
               static_cast<double>(plans[best].workspace_bytes()) / 1048576.0, best_ms.value_or(0.f));
  return plans[best];
}

const ConvPlan& Convolutions::plan(const ConvShape& shape, size_t staged_bytes,
                                   const std::function<void(const ConvPlan&)>& run) {
  const auto found = plans_.find(shape);
  if (found != plans_.end()) return found->second;
  return plans_.emplace(shape, choose(shape, staged_bytes, run)).first->second;
}

void Convolutions::run(const ConvShape& shape, const ConstView& first, const ConstView& second, const Output& output) {
  // Scratch: [staged arrays][workspace]. Inputs off the plans' alignment are copied there first; an output is written
  // there when it is off alignment, of another type, or to be added to.
  const DType dtype = shape.dtype;
  const bool direct = output.write == Write::overwrite && output.view.dtype == dtype && is_aligned(output.view.data);
  std::array<ConstView, 2> inputs{first, second};
  size_t staged = 0;
  std::array<size_t, 2> at{};
  for (size_t i = 0; i < inputs.size(); ++i)
    if (!is_aligned(inputs[i].data)) at[i] = staged, staged += round_up(inputs[i].bytes());
  const size_t output_at = staged;
  if (!direct) staged += round_up(static_cast<size_t>(output.view.size()) * size_of(dtype));

  const auto place = [&](const ConvPlan& plan) {
    return static_cast<std::byte*>(context_.scratch(staged + plan.workspace_bytes()));
  };
  const auto execute = [&](const ConvPlan& plan) {
    std::byte* scratch = place(plan);
    const auto input = [&](size_t i) -> const void* {
      return is_aligned(inputs[i].data) ? inputs[i].data : scratch + at[i];
    };
    const void* result = direct ? output.view.data : scratch + output_at;
    const void *x = input(0), *w = input(1), *y = result;  // in the order of the inputs, then put right
    if (shape.direction == Direction::grad_input) x = result, w = input(1), y = input(0);
    if (shape.direction == Direction::grad_weight) x = input(0), w = result, y = input(1);
    plan.run(handle_.get(), x, w, y, scratch + staged);
  };

  const ConvPlan& chosen = plan(shape, staged, execute);
  std::byte* scratch = place(chosen);
  for (size_t i = 0; i < inputs.size(); ++i)
    if (!is_aligned(inputs[i].data))
      copy(context_, {.x = inputs[i], .y = {scratch + at[i], inputs[i].shape, inputs[i].dtype}});
  execute(chosen);
  if (!direct)
    axpy(context_, {.x = {scratch + output_at, output.view.shape, dtype}, .y = output.view, .write = output.write});
}

void Convolutions::forward(const Backend::Conv2d& args) {
  const ConvShape shape = check_conv("conv2d", Direction::forward, args.x, args.w, args.y, args.stride, args.pad);
  if (args.y.size() == 0) return;
  run(shape, args.x, args.w, {args.y, Write::overwrite});
}

void Convolutions::grad_input(const Backend::Conv2dGradInput& args) {
  const ConvShape shape =
      check_conv("conv2d_grad_input", Direction::grad_input, args.dx, args.w, args.dy, args.stride, args.pad);
  if (args.dx.size() == 0) return;
  run(shape, args.dy, args.w, {args.dx, args.write});
}

void Convolutions::grad_weight(const Backend::Conv2dGradWeight& args) {
  const ConvShape shape =
      check_conv("conv2d_grad_weight", Direction::grad_weight, args.x, args.dw, args.dy, args.stride, args.pad);
  if (args.dw.size() == 0) return;
  if (shape.n == 0) {  // a sum over no images
    if (args.write == Write::overwrite) fill(context_, {.y = args.dw, .value = 0});
    return;
  }
  if (shape.r == 1 && shape.s == 1 && shape.stride == 1 && shape.pad == 0) {
    const int64_t pixels = shape.n * shape.h * shape.w;  // dw[k,c] = sum over pixels of dy[.,k] * x[.,c]
    return matmuls_.matmul({.a = {args.dy.data, {pixels, shape.k}, args.dy.dtype},
                            .b = {args.x.data, {pixels, shape.c}, args.x.dtype},
                            .c = {args.dw.data, {shape.k, shape.c}, args.dw.dtype},
                            .transpose_a = true,
                            .write = args.write});
  }
  run(shape, args.x, args.dy, {args.dw, args.write});
}

}  // namespace csml::cuda
