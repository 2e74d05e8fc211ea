// The calls that change state. Compiled without contraction (CMakeLists.txt): a product and a sum are rounded one after
// the other whatever the loop around them, so that calls which share a formula share its bits. They are bound by
// memory.
#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/scratch.h"
#include "kernels/half.h"

namespace csml::cpu {

namespace {

constexpr int64_t kGrain = 16384;  // elements per thread below which starting a team costs more than it saves
constexpr int64_t kChunk = 16384;  // elements of one partial sum; fixed, so that sums do not depend on the threads
constexpr int64_t kBlock = 2048;   // elements whose new values are still in the first-level cache for what follows

bool is_finite(const char* op, const ConstView& finite) {
  CHECK(!finite || finite.size() == 1, "{}: finite is {}, must be [1]", op, finite.shape.text());
  return !finite || *finite.as<int32_t>() != 0;
}

void check_same(const char* op, const char* name, const ConstView& x, const ConstView& y) {
  CHECK(x && y && x.shape == y.shape, "{}: {} is {}, must be {}", op, name, y.shape.text(), x.shape.text());
}

float scalar(const char* op, const char* name, const ConstView& x) {
  CHECK(x.size() == 1, "{}: {} is {}, must be [1]", op, name, x.shape.text());
  return *x.as<float>();
}

float scalar_or_one(const char* op, const char* name, const ConstView& x) { return x ? scalar(op, name, x) : 1.f; }

/// One optimizer step of elements [begin, end): d = (inverse_scale * grad + weight_decay * param) * factor;
/// buffer = momentum * buffer + d;  param -= lr * buffer.
struct MomentumStep {
  float* __restrict param;
  float* __restrict buffer;
  const float* __restrict grad;
  float momentum, lr, inverse_scale;

  void operator()(int64_t begin, int64_t end, float weight_decay, float factor) const {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) {
      const float d = (inverse_scale * grad[i] + weight_decay * param[i]) * factor;
      const float b = momentum * buffer[i] + d;
      buffer[i] = b;
      param[i] -= lr * b;
    }
  }
};

/// y = keep * y + (1 - keep) * x of elements [begin, end).
struct Blend {
  const float* __restrict x;
  float* __restrict y;
  float keep;

  void operator()(int64_t begin, int64_t end) const {
    const float take = 1.f - keep;
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) y[i] = keep * y[i] + take * x[i];
  }
};

/// Copies of f32 values in 16 bits.
struct Rounding {
  const float* from;
  View to;

  void operator()(int64_t begin, int64_t end) const {
    if (to.dtype == DType::bf16)
      round_to(to.as<bf16>(), begin, end);
    else
      round_to(to.as<f16>(), begin, end);
  }
  template <class T>
  void round_to(T* __restrict y, int64_t begin, int64_t end) const {
    for (int64_t i = begin; i < end; ++i) y[i] = T(from[i]);
  }
};

void check_copy(const char* name, const ConstView& copy, const ConstView& of, const ConstView& other) {
  CHECK(!copy || (of && copy.size() == of.size() && (copy.dtype == DType::bf16 || copy.dtype == DType::f16) &&
                  (!other || other.dtype == copy.dtype)),
        "sgd: {} is {} {}; must be bf16 or f16, of the size of what it copies, and both copies of one type", name,
        name_of(copy.dtype), copy.shape.text());
}

/// Part of one LARS segment, with its sums of param^2 and (grad + weight_decay * param)^2.
struct Piece {
  int64_t segment, begin, end;
  double param, update;
};

void sum_squares(Piece& piece, const MomentumStep& step, float weight_decay) {
  const float *param = step.param, *grad = step.grad, inverse_scale = step.inverse_scale;
  double p2 = 0, d2 = 0;
#pragma omp simd reduction(+ : p2, d2)
  for (int64_t i = piece.begin; i < piece.end; ++i) {
    const double p = param[i], d = inverse_scale * grad[i] + weight_decay * param[i];
    p2 += p * p;
    d2 += d * d;
  }
  piece.param = p2;
  piece.update = d2;
}

}  // namespace

void all_finite(const Backend::AllFinite& args) {
  CHECK(args.flag.size() == 1, "all_finite: flag is {}, must be [1]", args.flag.shape.text());
  const float* x = args.x.as<float>();
  std::atomic<bool> found{false};
  parallel_for(args.x.size(), kGrain, [x, &found](int64_t begin, int64_t end) {
    for (int64_t first = begin; first < end && !found.load(std::memory_order_relaxed); first += kChunk) {
      const int64_t last = std::min(end, first + kChunk);
      uint32_t most = 0;  // magnitudes compare as their bits do; infinity is 0x7f800000, NaN lies above
#pragma omp simd reduction(max : most)
      for (int64_t i = first; i < last; ++i) {
        const uint32_t magnitude = std::bit_cast<uint32_t>(x[i]) & 0x7fffffffu;
        most = magnitude > most ? magnitude : most;
      }
      if (most >= 0x7f800000u) found.store(true, std::memory_order_relaxed);
    }
  });
  int32_t* flag = args.flag.as<int32_t>();
  const bool before = args.write == Write::overwrite || *flag != 0;
  *flag = before && !found.load() ? 1 : 0;
}

void sgd(const Backend::Sgd& args) {
  check_same("sgd", "grad", args.param, args.grad);
  check_same("sgd", "buffer", args.param, args.buffer);
  CHECK(args.average.size() <= args.param.size(), "sgd: average is {} for the {} parameters", args.average.shape.text(),
        args.param.size());
  check_copy("param_copy", args.param_copy, args.param, args.average_copy);
  check_copy("average_copy", args.average_copy, args.average, args.param_copy);
  const MomentumStep step{args.param.as<float>(),
                          args.buffer.as<float>(),
                          args.grad.as<float>(),
                          args.momentum,
                          scalar("sgd", "learning_rate", args.learning_rate),
                          scalar_or_one("sgd", "inverse_scale", args.inverse_scale)};
  const Blend blend{step.param, args.average.as<float>(),
                    args.average ? scalar("sgd", "average_momentum", args.average_momentum) : 1.f};
  if (!is_finite("sgd", args.finite)) return;
  const Rounding round_param{step.param, args.param_copy}, round_average{blend.y, args.average_copy};
  const int64_t averaged = args.average.size();
  const float weight_decay = args.weight_decay;
  parallel_for(args.param.size(), kGrain, [=](int64_t first, int64_t last) {
    for (int64_t begin = first; begin < last; begin += kBlock) {
      const int64_t end = std::min(last, begin + kBlock), average_end = std::min(end, averaged);
      step(begin, end, weight_decay, 1.f);
      if (round_param.to) round_param(begin, end);
      if (begin >= average_end) continue;
      blend(begin, average_end);
      if (round_average.to) round_average(begin, average_end);
    }
  });
}

void lars(const Backend::Lars& args) {
  check_same("lars", "grad", args.param, args.grad);
  check_same("lars", "buffer", args.param, args.buffer);
  const int64_t segments = args.adapt.size();
  CHECK(args.offsets.size() == segments + 1, "lars: offsets is {}, must be [{}] for {} segments",
        args.offsets.shape.text(), segments + 1, segments);
  const int64_t* offsets = args.offsets.as<int64_t>();
  const float* adapt = args.adapt.as<float>();
  const MomentumStep step{args.param.as<float>(),
                          args.buffer.as<float>(),
                          args.grad.as<float>(),
                          args.momentum,
                          scalar("lars", "learning_rate", args.learning_rate),
                          scalar_or_one("lars", "inverse_scale", args.inverse_scale)};
  const int64_t size = args.param.size();
  for (int64_t s = 0; s < segments; ++s)
    CHECK(offsets[s] >= 0 && offsets[s] <= offsets[s + 1] && offsets[s + 1] <= size,
          "lars: segment {} is [{}, {}), outside the {} parameters", s, offsets[s], offsets[s + 1], size);
  if (!is_finite("lars", args.finite)) return;

  // Two regions for all segments, not two for each: a network has hundreds, most of them small.
  int64_t count = 0;
  for (int64_t s = 0; s < segments; ++s) count += (offsets[s + 1] - offsets[s] + kChunk - 1) / kChunk;
  thread_local Scratch piece_scratch, scale_scratch;
  Piece* pieces = piece_scratch.get<Piece>(count);
  float* scale = scale_scratch.get<float>(segments);
  count = 0;
  for (int64_t s = 0; s < segments; ++s)
    for (int64_t i = offsets[s]; i < offsets[s + 1]; i += kChunk)
      pieces[count++] = {s, i, std::min(i + kChunk, offsets[s + 1]), 0, 0};
  const float weight_decay = args.weight_decay;
  parallel_for(count, 1, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      if (adapt[pieces[i].segment] != 0) sum_squares(pieces[i], step, weight_decay);
  });
  for (int64_t i = 0, s = 0; s < segments; ++s) {
    double param = 0, update = 0;
    for (; i < count && pieces[i].segment == s; ++i) {
      param += pieces[i].param;
      update += pieces[i].update;
    }
    const bool adapts = adapt[s] != 0 && param > 0 && update > 0;
    scale[s] = adapts ? static_cast<float>(args.trust * std::sqrt(param / update)) : 1.f;
  }
  parallel_for(count, 1, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Piece& p = pieces[i];
      step(p.begin, p.end, adapt[p.segment] != 0 ? weight_decay : 0.f, scale[p.segment]);
    }
  });
}

void adamw(const Backend::AdamW& args) {
  check_same("adamw", "grad", args.param, args.grad);
  check_same("adamw", "first", args.param, args.first);
  check_same("adamw", "second", args.param, args.second);
  CHECK(args.step.size() == 1, "adamw: step is {}, must be [1]", args.step.shape.text());
  const double lr = scalar("adamw", "learning_rate", args.learning_rate);
  const float inverse_scale = scalar_or_one("adamw", "inverse_scale", args.inverse_scale);
  if (!is_finite("adamw", args.finite)) return;
  int64_t* step = args.step.as<int64_t>();
  const double t = static_cast<double>(++*step);

  // m / (1 - b1^t) and sqrt(v / (1 - b2^t)), with the constants taken out of the loop in double.
  const float b1 = args.beta1, b2 = args.beta2, eps = args.eps;
  const float a1 = static_cast<float>(1.0 - args.beta1), a2 = static_cast<float>(1.0 - args.beta2);
  const float rate = static_cast<float>(lr / (1.0 - std::pow(static_cast<double>(b1), t)));
  const float unbias = static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(static_cast<double>(b2), t)));
  const float keep = static_cast<float>(1.0 - lr * args.weight_decay);
  const float* __restrict grad = args.grad.as<float>();
  float* __restrict param = args.param.as<float>();
  float* __restrict first = args.first.as<float>();
  float* __restrict second = args.second.as<float>();
  parallel_for(args.param.size(), kGrain, [=](int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) {
      const float g = inverse_scale * grad[i];
      const float m = b1 * first[i] + a1 * g, v = b2 * second[i] + a2 * g * g;
      first[i] = m;
      second[i] = v;
      param[i] = param[i] * keep - rate * m / (std::sqrt(v) * unbias + eps);
    }
  });
}

void ema(const Backend::Ema& args) {
  check_same("ema", "x", args.y, args.x);
  const float keep = scalar("ema", "momentum", args.momentum);
  if (!is_finite("ema", args.finite)) return;
  const Blend blend{args.x.as<float>(), args.y.as<float>(), keep};
  parallel_for(args.y.size(), kGrain, blend);
}

void update_loss_scale(const Backend::UpdateLossScale& args) {
  CHECK(args.scale.size() == 2 && args.counters.size() == 2 && args.finite.size() == 1,
        "update_loss_scale: scale {} and counters {} must be [2], finite {} [1]", args.scale.shape.text(),
        args.counters.shape.text(), args.finite.shape.text());
  float* scale = args.scale.as<float>();
  int64_t* counters = args.counters.as<int64_t>();
  int32_t* finite = args.finite.as<int32_t>();
  if (*finite == 0) {
    if (scale[0] <= args.smallest) return;
    scale[0] = std::max(scale[0] / 2, args.smallest);
    counters[0] = 0;
    ++counters[1];
    *finite = 1;
  } else if (++counters[0] >= args.interval) {
    scale[0] = std::min(2 * scale[0], args.largest);
    counters[0] = 0;
  }
  scale[1] = 1 / scale[0];
}

void ring_write(const Backend::RingWrite& args) {
  const Shape &rows = args.rows.shape, &queue = args.queue.shape;
  CHECK(rows.rank() == 2 && queue.rank() == 2 && rows[1] == queue[1] && queue[0] > 0,
        "ring_write: rows {} do not fit the queue {}", rows.text(), queue.text());
  CHECK(args.rows.dtype == args.queue.dtype, "ring_write: rows of {} into a queue of {}", name_of(args.rows.dtype),
        name_of(args.queue.dtype));
  CHECK(args.cursor.size() == 1, "ring_write: cursor is {}, must be [1]", args.cursor.shape.text());
  int64_t* cursor = args.cursor.as<int64_t>();
  CHECK(*cursor >= 0 && *cursor < queue[0], "ring_write: cursor {} is outside the {} rows of the queue", *cursor,
        queue[0]);
  if (!is_finite("ring_write", args.finite)) return;

  const size_t row_bytes = static_cast<size_t>(queue[1]) * size_of(args.queue.dtype);
  const char* from = static_cast<const char*>(args.rows.data);
  char* to = static_cast<char*>(args.queue.data);
  int64_t at = *cursor;
  for (int64_t i = 0; i < rows[0];) {  // runs up to the end of the queue; a later row overwrites an earlier one
    const int64_t run = std::min(rows[0] - i, queue[0] - at);
    std::memcpy(to + at * row_bytes, from + i * row_bytes, run * row_bytes);
    i += run;
    at = (at + run) % queue[0];
  }
  *cursor = at;
}

}  // namespace csml::cpu
