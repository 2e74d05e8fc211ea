// The calls that change state. Flat f32 buffers, n elements; all predicated on `finite`, which lies in device memory,
// as learning rate and momentum do: where it holds 0, kernels return before they touch anything. Bound by memory;
// floors:
//   all_finite 4n   ema 12n   sgd 20n (28n with an average, 32n with copies in 16 bits)   adamw 28n
//   lars 28n (8n for the norms, 20n)      bytes / bandwidth
// all_finite also takes bf16 and f16; ring_write moves elements of any type. Compiled without contraction
// (CMakeLists.txt): a product and a sum are rounded one after the other in every kernel, so that calls which share a
// formula share its bits.
#include "kernels/cuda/map.cuh"

namespace csml::cuda {

namespace {

DEVICE bool holds(const int32_t* finite) { return !finite || *finite != 0; }

// ---- all_finite -----------------------------------------------------------------------------------------------------

constexpr float kLargest = std::numeric_limits<float>::max();

KERNEL void set_flag_kernel(int32_t* flag) {
  if (thread() == 0) *flag = 1;
}

/// Several threads may write the same 0. Bytes: reads x.
template <class T>
struct FiniteOp {
  const T* x;
  int32_t* flag;

  template <int N>
  DEVICE void apply(int64_t i) const {
    const Pack<T, N> v = load_pack<N>(x + i);
    bool finite = true;
    for (int j = 0; j < N; ++j) finite = finite && std::fabs(float(v[j])) <= kLargest;
    if (!finite) *flag = 0;
  }
};

// ---- momentum -------------------------------------------------------------------------------------------------------

/// d = (inverse_scale * grad + weight_decay * param) * factor; buffer = momentum * buffer + d; param -= lr * buffer.
/// Bytes: reads grad, param and buffer, writes param and buffer: 20 an element. FLOPs: 8 an element.
struct MomentumStep {
  float *param, *buffer;
  const float *grad, *learning_rate, *inverse_scale;  // inverse_scale null: 1
  const int32_t* finite;
  float momentum, weight_decay;

  DEVICE float scale() const { return inverse_scale ? *inverse_scale : 1.f; }
  /// The new parameters.
  template <int N>
  DEVICE Pack<float, N> step(int64_t i, float decay, float factor) const {
    Pack<float, N> p = load_pack<N>(param + i), b = load_pack<N>(buffer + i);
    const Pack<float, N> g = load_pack<N>(grad + i);
    const float lr = *learning_rate, unscale = scale();
    for (int j = 0; j < N; ++j) {
      b[j] = momentum * b[j] + (unscale * g[j] + decay * p[j]) * factor;
      p[j] -= lr * b[j];
    }
    store_pack(buffer + i, b);
    store_pack(param + i, p);
    return p;
  }
};

/// y = keep * y + (1 - keep) * x.
DEVICE float blended(float keep, float y, float x) { return keep * y + (1.f - keep) * x; }

template <class T, int N>
DEVICE Pack<T, N> rounded(const Pack<float, N>& x) {
  Pack<T, N> y;
  for (int j = 0; j < N; ++j) y[j] = T(x[j]);
  return y;
}

/// Bytes: the step's, 8 an element more for the average, 2 for each copy: 32 with all of it. FLOPs: 8, with average 12.
template <class T>
struct SgdOp {
  MomentumStep step;
  float* average;
  const float* average_momentum;
  int64_t averaged;              // elements of average
  T *param_copy, *average_copy;  // null: not wanted

  template <int N>
  DEVICE void apply(int64_t i) const {
    if (!holds(step.finite)) return;
    const Pack<float, N> p = step.template step<N>(i, step.weight_decay, 1.f);
    if (param_copy) store_pack(param_copy + i, rounded<T>(p));
    if (i + N <= averaged)
      follow<N>(i, p);
    else
      for (int j = 0; j < N && i + j < averaged; ++j) follow<1>(i + j, Pack<float, 1>{{p[j]}});
  }
  template <int N>
  DEVICE void follow(int64_t i, const Pack<float, N>& p) const {
    Pack<float, N> a = load_pack<N>(average + i);
    for (int j = 0; j < N; ++j) a[j] = blended(*average_momentum, a[j], p[j]);
    store_pack(average + i, a);
    if (average_copy) store_pack(average_copy + i, rounded<T>(a));
  }
};

// ---- LARS -----------------------------------------------------------------------------------------------------------

constexpr int kThreads = 256;
constexpr int kParts = 128;         // of a segment, at most
constexpr int64_t kMinPart = 4096;  // elements

/// The host knows the number of segments but not their sizes: every segment is cut into kParts parts, of which a short
/// one leaves the last empty. Cut by the segment's size alone, so that sums do not depend on the card.
struct Segments {
  const int64_t* offsets;
  const float* adapt;
  int64_t size;  // of the buffers: what lies outside is not touched
};

/// Calls f.apply<N>(i) for all i of part block().x of segment block().y.
template <int N, class F>
DEVICE void for_part(const Segments& s, const F& f) {
  const int64_t begin = max(int64_t{0}, s.offsets[block().y]), end = min(s.size, s.offsets[block().y + 1]);
  const int64_t part = max(kMinPart, ceil_div(ceil_div(end - begin, kParts), kMinPart) * kMinPart);
  const int64_t first = begin + block().x * part, last = min(end, first + part);
  if (first >= last) return;
  const int64_t head = min(last, ceil_div(first, N) * N), packs = (last - head) / N;  // packs are aligned in the buffer
  for (int64_t i = first + thread(); i < head; i += kThreads) f.template apply<1>(i);
  for (int64_t i = thread(); i < packs; i += kThreads) f.template apply<N>(head + i * N);
  for (int64_t i = head + packs * N + thread(); i < last; i += kThreads) f.template apply<1>(i);
}

struct NormOp {
  const MomentumStep& s;
  double &param, &update;

  template <int N>
  DEVICE void apply(int64_t i) const {
    const Pack<float, N> p = load_pack<N>(s.param + i), g = load_pack<N>(s.grad + i);
    const float unscale = s.scale();
    for (int j = 0; j < N; ++j) {
      const double x = p[j], d = unscale * g[j] + s.weight_decay * p[j];
      param += x * x;
      update += d * d;
    }
  }
};

/// partial[segment, part] = sum of param^2, sum of (inverse_scale * grad + weight_decay * param)^2: in double, as small
/// gradients' squares leave the range of f32. Bytes: reads param and grad, 8 an element. FLOPs: 7 an element.
template <int N>
KERNEL void lars_norms_kernel(Segments s, MomentumStep step, double* partial) {
  if (!holds(step.finite) || s.adapt[block().y] == 0) return;
  double param = 0, update = 0;
  for_part<N>(s, NormOp{step, param, update});
  param = block_sum(param);
  update = block_sum(update);
  if (thread() > 0) return;
  double* to = partial + (int64_t{block().y} * kParts + block().x) * 2;
  to[0] = param;
  to[1] = update;
}

/// scale[segment]; a block, with a thread for each of its parts.
KERNEL void lars_scale_kernel(const float* adapt, const int32_t* finite, const double* partial, int parts, float trust,
                              float* scale) {
  if (!holds(finite)) return;
  double param = 0, update = 0;
  if (adapt[block().x] != 0) {
    const double* from = partial + (int64_t{block().x} * kParts + thread()) * 2;
    param = block_sum(thread() < parts ? from[0] : 0.0);
    update = block_sum(thread() < parts ? from[1] : 0.0);
  }
  if (thread() == 0)
    scale[block().x] = param > 0 && update > 0 ? static_cast<float>(trust * std::sqrt(param / update)) : 1.f;
}

struct LarsOp {
  const MomentumStep& s;
  float decay, scale;

  template <int N>
  DEVICE void apply(int64_t i) const {
    s.step<N>(i, decay, scale);
  }
};

template <int N>
KERNEL void lars_update_kernel(Segments s, MomentumStep step, const float* scale) {
  if (!holds(step.finite)) return;
  for_part<N>(s, LarsOp{step, s.adapt[block().y] != 0 ? step.weight_decay : 0.f, scale[block().y]});
}

template <int N>
void lars_as(Context& context, const Segments& s, const MomentumStep& step, int64_t segments, float trust) {
  double* partial = context.scratch<double>(segments * (2 * kParts + 1));
  float* scale = reinterpret_cast<float*>(partial + segments * 2 * kParts);
  const int64_t parts = min(int64_t{kParts}, ceil_div(s.size, kMinPart));  // no segment has more
  const Grid grid{.x = parts, .y = segments};
  launch(context, {.name = "lars norms", .grid = grid, .threads = kThreads}, lars_norms_kernel<N>, s, step, partial);
  launch(context, {.name = "lars scale", .grid = {segments}, .threads = kParts}, lars_scale_kernel, s.adapt,
         step.finite, partial, static_cast<int>(parts), trust, scale);
  launch(context, {.name = "lars update", .grid = grid, .threads = kThreads}, lars_update_kernel<N>, s, step, scale);
}

// ---- AdamW ----------------------------------------------------------------------------------------------------------

/// m / (1 - b1^t) and sqrt(v / (1 - b2^t)) as factors.
struct AdamFactors {
  float rate, unbias, keep;
};

KERNEL void adamw_step_kernel(int64_t* step, const float* learning_rate, const int32_t* finite, float beta1,
                              float beta2, float weight_decay, AdamFactors* factors) {
  if (thread() > 0 || !holds(finite)) return;
  const double lr = *learning_rate, t = static_cast<double>(++*step);
  factors->rate = static_cast<float>(lr / (1.0 - std::pow(static_cast<double>(beta1), t)));
  factors->unbias = static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(static_cast<double>(beta2), t)));
  factors->keep = static_cast<float>(1.0 - lr * static_cast<double>(weight_decay));
}

/// Bytes: reads grad, param and both moments, writes the last three: 28 an element. FLOPs: 15 an element.
struct AdamOp {
  float *param, *first, *second;
  const float *grad, *inverse_scale;  // inverse_scale null: 1
  const AdamFactors* factors;
  const int32_t* finite;
  float beta1, beta2, take1, take2, eps;

  template <int N>
  DEVICE void apply(int64_t i) const {
    if (!holds(finite)) return;
    const AdamFactors f = *factors;
    Pack<float, N> p = load_pack<N>(param + i), m = load_pack<N>(first + i), v = load_pack<N>(second + i);
    Pack<float, N> g = load_pack<N>(grad + i);
    const float unscale = inverse_scale ? *inverse_scale : 1.f;
    for (int j = 0; j < N; ++j) {
      g[j] = unscale * g[j];
      m[j] = beta1 * m[j] + take1 * g[j];
      v[j] = beta2 * v[j] + take2 * g[j] * g[j];
      p[j] = p[j] * f.keep - f.rate * m[j] / (std::sqrt(v[j]) * f.unbias + eps);
    }
    store_pack(first + i, m);
    store_pack(second + i, v);
    store_pack(param + i, p);
  }
};

// ---- ema, loss scale, ring_write
// -------------------------------------------------------------------------------------

/// Bytes: reads x and y, writes y: 12 an element. FLOPs: 4 an element.
struct EmaOp {
  const float* x;
  float* y;
  const float* momentum;
  const int32_t* finite;

  template <int N>
  DEVICE void apply(int64_t i) const {
    if (!holds(finite)) return;
    const Pack<float, N> in = load_pack<N>(x + i);
    Pack<float, N> out = load_pack<N>(y + i);
    for (int j = 0; j < N; ++j) out[j] = blended(*momentum, out[j], in[j]);
    store_pack(y + i, out);
  }
};

KERNEL void update_loss_scale_kernel(float* scale, int64_t* counters, int32_t* finite, int interval, float smallest,
                                     float largest) {
  if (thread() > 0) return;
  if (*finite == 0) {
    if (scale[0] <= smallest) return;
    scale[0] = max(scale[0] / 2, smallest);
    counters[0] = 0;
    ++counters[1];
    *finite = 1;
  } else if (++counters[0] >= interval) {
    scale[0] = min(2 * scale[0], largest);
    counters[0] = 0;
  }
  scale[1] = 1 / scale[0];
}

/// The cursor's row, in [0, keys) whatever it holds.
DEVICE int64_t row_of(const int64_t* cursor, int64_t keys) {
  const int64_t at = *cursor % keys;
  return at < 0 ? at + keys : at;
}

/// Elements [skipped, ...) of rows. Bytes: reads rows, writes as much of the queue.
template <class T>
struct RingOp {
  const T* rows;
  T* queue;
  const int64_t* cursor;
  const int32_t* finite;
  int64_t keys, columns, skipped;

  template <int N>
  DEVICE void apply(int64_t i) const {
    if (!holds(finite)) return;
    const int64_t element = skipped * columns + i;
    const int64_t to = (row_of(cursor, keys) * columns + element) % (keys * columns);
    store_pack(queue + to, load_pack<N>(rows + element));
  }
};

KERNEL void advance_kernel(int64_t* cursor, const int32_t* finite, int64_t rows, int64_t keys) {
  if (thread() == 0 && holds(finite)) *cursor = (row_of(cursor, keys) + rows) % keys;
}

// ---- host side ------------------------------------------------------------------------------------------------------

const int32_t* finite_of(const char* op, const ConstView& finite) {
  CHECK(!finite || finite.size() == 1, "{}: finite is {}, must be [1]", op, finite.shape.text());
  return pointer_or_null<int32_t>(finite);
}

void check_size(const char* op, const char* name, const ConstView& x, const ConstView& like) {
  CHECK(x && like && x.shape == like.shape, "{}: {} is {}, must be {}", op, name, x.shape.text(), like.shape.text());
}

template <class T>
const T* scalar(const char* op, const char* name, const ConstView& x) {
  CHECK(x.size() == 1, "{}: {} is {}, must be [1]", op, name, x.shape.text());
  return x.as<T>();
}

const float* scalar_or_null(const char* op, const char* name, const ConstView& x) {
  return x ? scalar<float>(op, name, x) : nullptr;
}

void check_copy(const char* name, const ConstView& copy, const ConstView& of, const ConstView& other) {
  CHECK(!copy || (of && copy.size() == of.size() && (copy.dtype == DType::bf16 || copy.dtype == DType::f16) &&
                  (!other || other.dtype == copy.dtype)),
        "sgd: {} is {} {}; must be bf16 or f16, of the size of what it copies, and both copies of one type", name,
        name_of(copy.dtype), copy.shape.text());
}

template <class T>
void sgd_as(Context& context, const Backend::Sgd& args, const MomentumStep& step) {
  const SgdOp<T> op{
      .step = step,
      .average = pointer_or_null<float>(args.average),
      .average_momentum = args.average ? scalar<float>("sgd", "average_momentum", args.average_momentum) : nullptr,
      .averaged = args.average.size(),
      .param_copy = pointer_or_null<T>(args.param_copy),
      .average_copy = pointer_or_null<T>(args.average_copy)};
  const bool wide = aligned(step.param) && aligned(step.buffer) && aligned(step.grad) && aligned(op.average) &&
                    aligned(op.param_copy, 4 * sizeof(T)) && aligned(op.average_copy, 4 * sizeof(T));
  map<4>(context, "sgd", op, args.param.size(), wide);
}

}  // namespace

void all_finite(Context& context, const Backend::AllFinite& args) {
  CHECK(args.flag.size() == 1, "all_finite: flag is {}, must be [1]", args.flag.shape.text());
  int32_t* flag = args.flag.as<int32_t>();
  if (args.write == Write::overwrite)
    launch(context, {.name = "all_finite flag", .grid = {1}, .threads = kWarp}, set_flag_kernel, flag);
  with_float_type(args.x.dtype, [&]<class T>(T) {
    const T* x = args.x.as<T>();
    map<kPack<T>>(context, "all_finite", FiniteOp<T>{x, flag}, args.x.size(), aligned(x));
  });
}

void sgd(Context& context, const Backend::Sgd& args) {
  check_size("sgd", "grad", args.grad, args.param);
  check_size("sgd", "buffer", args.buffer, args.param);
  CHECK(args.average.size() <= args.param.size(), "sgd: average is {} for the {} parameters", args.average.shape.text(),
        args.param.size());
  check_copy("param_copy", args.param_copy, args.param, args.average_copy);
  check_copy("average_copy", args.average_copy, args.average, args.param_copy);
  const MomentumStep step{.param = args.param.as<float>(),
                          .buffer = args.buffer.as<float>(),
                          .grad = args.grad.as<float>(),
                          .learning_rate = scalar<float>("sgd", "learning_rate", args.learning_rate),
                          .inverse_scale = scalar_or_null("sgd", "inverse_scale", args.inverse_scale),
                          .finite = finite_of("sgd", args.finite),
                          .momentum = args.momentum,
                          .weight_decay = args.weight_decay};
  if (args.param_copy.dtype == DType::f16 || args.average_copy.dtype == DType::f16)
    sgd_as<f16>(context, args, step);
  else
    sgd_as<bf16>(context, args, step);  // without copies the type does not matter
}

void lars(Context& context, const Backend::Lars& args) {
  check_size("lars", "grad", args.grad, args.param);
  check_size("lars", "buffer", args.buffer, args.param);
  const int64_t segments = args.adapt.size();
  CHECK(args.offsets.size() == segments + 1, "lars: offsets is {}, must be [{}] for {} segments",
        args.offsets.shape.text(), segments + 1, segments);
  const MomentumStep step{.param = args.param.as<float>(),
                          .buffer = args.buffer.as<float>(),
                          .grad = args.grad.as<float>(),
                          .learning_rate = scalar<float>("lars", "learning_rate", args.learning_rate),
                          .inverse_scale = scalar_or_null("lars", "inverse_scale", args.inverse_scale),
                          .finite = finite_of("lars", args.finite),
                          .momentum = args.momentum,
                          .weight_decay = args.weight_decay};
  const Segments s{.offsets = args.offsets.as<int64_t>(), .adapt = args.adapt.as<float>(), .size = args.param.size()};
  if (aligned(step.param) && aligned(step.buffer) && aligned(step.grad))
    lars_as<4>(context, s, step, segments, args.trust);
  else
    lars_as<1>(context, s, step, segments, args.trust);
}

void adamw(Context& context, const Backend::AdamW& args) {
  check_size("adamw", "grad", args.grad, args.param);
  check_size("adamw", "first", args.first, args.param);
  check_size("adamw", "second", args.second, args.param);
  CHECK(args.step.size() == 1, "adamw: step is {}, must be [1]", args.step.shape.text());
  const int32_t* finite = finite_of("adamw", args.finite);
  const float* lr = scalar<float>("adamw", "learning_rate", args.learning_rate);
  AdamFactors* factors = context.scratch<AdamFactors>(1);
  launch(context, {.name = "adamw step", .grid = {1}, .threads = kWarp}, adamw_step_kernel, args.step.as<int64_t>(), lr,
         finite, args.beta1, args.beta2, args.weight_decay, factors);
  const AdamOp op{.param = args.param.as<float>(),
                  .first = args.first.as<float>(),
                  .second = args.second.as<float>(),
                  .grad = args.grad.as<float>(),
                  .inverse_scale = scalar_or_null("adamw", "inverse_scale", args.inverse_scale),
                  .factors = factors,
                  .finite = finite,
                  .beta1 = args.beta1,
                  .beta2 = args.beta2,
                  .take1 = static_cast<float>(1.0 - static_cast<double>(args.beta1)),
                  .take2 = static_cast<float>(1.0 - static_cast<double>(args.beta2)),
                  .eps = args.eps};
  map<4>(context, "adamw", op, args.param.size(),
         aligned(op.param) && aligned(op.first) && aligned(op.second) && aligned(op.grad));
}

void ema(Context& context, const Backend::Ema& args) {
  check_size("ema", "x", args.x, args.y);
  const EmaOp op{.x = args.x.as<float>(),
                 .y = args.y.as<float>(),
                 .momentum = scalar<float>("ema", "momentum", args.momentum),
                 .finite = finite_of("ema", args.finite)};
  map<4>(context, "ema", op, args.y.size(), aligned(op.x) && aligned(op.y));
}

void update_loss_scale(Context& context, const Backend::UpdateLossScale& args) {
  CHECK(args.scale.size() == 2 && args.counters.size() == 2 && args.finite.size() == 1,
        "update_loss_scale: scale {} and counters {} must be [2], finite {} [1]", args.scale.shape.text(),
        args.counters.shape.text(), args.finite.shape.text());
  launch(context, {.name = "update_loss_scale", .grid = {1}, .threads = kWarp}, update_loss_scale_kernel,
         args.scale.as<float>(), args.counters.as<int64_t>(), args.finite.as<int32_t>(), args.interval, args.smallest,
         args.largest);
}

void ring_write(Context& context, const Backend::RingWrite& args) {
  const Shape &rows = args.rows.shape, &queue = args.queue.shape;
  CHECK(rows.rank() == 2 && queue.rank() == 2 && rows[1] == queue[1] && queue[0] > 0,
        "ring_write: rows {} do not fit the queue {}", rows.text(), queue.text());
  CHECK(args.rows.dtype == args.queue.dtype, "ring_write: rows of {} into a queue of {}", name_of(args.rows.dtype),
        name_of(args.queue.dtype));
  CHECK(args.cursor.size() == 1, "ring_write: cursor is {}, must be [1]", args.cursor.shape.text());
  int64_t* cursor = args.cursor.as<int64_t>();
  const int32_t* finite = finite_of("ring_write", args.finite);
  const int64_t keys = queue[0], columns = queue[1], skipped = max(int64_t{0}, rows[0] - keys);
  with_size(size_of(args.queue.dtype), [&]<class T>(T) {
    const T* from = static_cast<const T*>(args.rows.data);
    T* to = static_cast<T*>(args.queue.data);
    map<kPack<T>>(context, "ring_write", RingOp<T>{from, to, cursor, finite, keys, columns, skipped},
                  (rows[0] - skipped) * columns, columns % kPack<T> == 0 && aligned(from) && aligned(to));
  });
  launch(context, {.name = "ring_write cursor", .grid = {1}, .threads = kWarp}, advance_kernel, cursor, finite, rows[0],
         keys);
}

}  // namespace csml::cuda
