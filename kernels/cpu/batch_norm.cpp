#include <cmath>
#include <type_traits>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/stream.h"

namespace csml::cpu {

namespace {

// Bound by memory traffic, so: as few passes as possible, each in one sweep over rows. Rows are cut into chunks that do
// not depend on the number of threads; runs of kRun rows are summed in float, runs and chunks in order in double.
// Results are therefore the same for every thread count.
constexpr int kRun = 8;

/// How x [N, ..., C] is walked. A chunk is a run of rows of one group; where C is small, `fold` neighbouring rows are
/// read as one wide row, so that the inner loop stays long. Coefficients are stored expanded to `width` = fold * C.
struct Layout {
  int64_t groups, rows, channels;  // rows per group
  int64_t fold, width;
  int64_t chunk, chunks;  // rows per chunk, chunks per group

  int64_t tasks() const { return groups * chunks; }
  int64_t group_of(int64_t task) const { return task / chunks; }
  int64_t first_row(int64_t task) const { return group_of(task) * rows + task % chunks * chunk; }
  int64_t rows_of(int64_t task) const { return std::min(chunk, rows - task % chunks * chunk); }
};

Layout layout_of(const char* op, const Shape& shape, int groups) {
  constexpr int64_t kChunk = 32768, kMinRows = 32, kMinWidth = 64;
  CHECK(shape.rank() >= 2, "{}: x must be [N, ..., C], got {}", op, shape.text());
  const int64_t channels = shape[shape.rank() - 1];
  CHECK(groups >= 1 && shape[0] % groups == 0, "{}: {} rows cannot be cut into {} equal groups", op, shape[0], groups);
  Layout v{};
  v.groups = groups;
  v.channels = channels;
  v.rows = channels > 0 ? shape.size() / channels / groups : 0;
  v.fold = channels > 0 ? (kMinWidth + channels - 1) / channels : 1;
  v.width = v.fold * channels;
  v.chunk = std::max(kMinRows, channels > 0 ? kChunk / channels : kChunk);
  v.chunks = (v.rows + v.chunk - 1) / v.chunk;
  return v;
}

void check_like(const char* op, const char* name, const ConstView& v, const Shape& shape, bool required) {
  CHECK(v || !required, "{}: {} is missing", op, name);
  CHECK(!v || (v.shape == shape && v.dtype == DType::f32), "{}: {} is {} {}, must be f32 {}", op, name,
        name_of(v.dtype), v.shape.text(), shape.text());
}

/// Calls f(offset, n) for the wide rows of a chunk: n = width, less for the last one.
template <class F>
void for_wide_rows(const Layout& v, int64_t task, F&& f) {
  const int64_t begin = v.first_row(task) * v.channels, end = begin + v.rows_of(task) * v.channels;
  for (int64_t at = begin; at < end; at += v.width) f(at, std::min(v.width, end - at));
}

/// to[j] = from[j mod C] for j < width
void expand(const Layout& v, const float* from, float* to) {
  for (int64_t j = 0; j < v.width; j += v.channels) std::copy(from, from + v.channels, to + j);
}

/// Calls f(rows, offset, n) for the wide rows of a chunk, kRun of them at a time, then one by one; rows is a
/// compile-time constant, so that f's loop over them is unrolled and its loop over lanes vectorised.
template <class F>
void for_runs(const Layout& v, int64_t task, F&& f) {
  const int64_t begin = v.first_row(task) * v.channels, end = begin + v.rows_of(task) * v.channels;
  int64_t at = begin;
  for (; at + kRun * v.width <= end; at += kRun * v.width) f(std::integral_constant<int, kRun>{}, at, v.width);
  for (; at < end; at += v.width) f(std::integral_constant<int, 1>{}, at, std::min(v.width, end - at));
}

/// sum[c] = sum of the lanes of channel c
void contract(const Layout& v, double* sum) {
  for (int64_t j = v.channels; j < v.width; j += v.channels)
    for (int64_t c = 0; c < v.channels; ++c) sum[c] += sum[j + c];
}

/// Where a thread's rows of one output go: straight there, or through a few rows in the first cache that are then
/// streamed.
class RowWriter {
 public:
  RowWriter(const Layout& v, float* to, bool overwrite)
      : to_(to), width_(v.width), streams_(overwrite && may_stream(v)), row_(row(v)) {}
  ~RowWriter() {
    if (streams_) end_stream();
  }
  RowWriter(const RowWriter&) = delete;
  RowWriter& operator=(const RowWriter&) = delete;

  float* begin(int64_t at, int64_t n) { return streams(at, n) ? row_ : to_ + at; }
  void end(int64_t at, int64_t n) {
    if (streams(at, n)) stream_row(to_ + at, row_, n);
  }

 private:
  static bool may_stream(const Layout& v) {
    return v.width % (kStreamBytes / sizeof(float)) == 0 &&
           static_cast<size_t>(v.groups * v.rows * v.channels) * sizeof(float) >= kStreamMinBytes;
  }
  static float* row(const Layout& v) {
    thread_local Scratch scratch;
    return scratch.get<float>(kRun * v.width);
  }
  bool streams(int64_t at, int64_t n) const {
    return streams_ && n % width_ == 0 && reinterpret_cast<uintptr_t>(to_ + at) % kStreamBytes == 0;
  }

  float* to_;
  int64_t width_;
  bool streams_;
  float* row_;
};

template <class F>
void with_flag(bool flag, F&& f) {
  if (flag)
    f(std::true_type{});
  else
    f(std::false_type{});
}

/// The affine part, the same in forward and backward: backward recomputes its sign and both must agree exactly.
inline float affine(float x, float mean, float scale, float beta) { return (x - mean) * scale + beta; }

/// Sums over each chunk, shifted by the chunk's first row k: sums[task] = [sum (x-k), sum (x-k)^2], width numbers each.
/// The shift keeps the squares small where |mean| is far above the deviation.
void chunk_moments(const Layout& v, const float* x, double* sums) {
  parallel_for(v.tasks(), 1, [=](int64_t begin, int64_t end) {
    thread_local Scratch scratch;
    float* __restrict shift = scratch.get<float>(v.width);
    for (int64_t task = begin; task < end; ++task) {
      double* __restrict s1 = sums + task * 2 * v.width;
      double* __restrict s2 = s1 + v.width;
      std::fill(s1, s1 + 2 * v.width, 0.0);
      expand(v, x + v.first_row(task) * v.channels, shift);
      for_runs(v, task, [&](auto rows, int64_t at, int64_t n) {
        const float* __restrict row = x + at;
        const int64_t width = v.width;
#pragma omp simd
        for (int64_t j = 0; j < n; ++j) {
          float sum = 0, squares = 0;
          for (int r = 0; r < rows; ++r) {
            const float d = row[r * width + j] - shift[j];
            sum += d;
            squares += d * d;
          }
          s1[j] += sum;
          s2[j] += squares;
        }
      });
      contract(v, s1);
      contract(v, s2);
    }
  });
}

/// y = act((x - mean) * scale + beta + residual), coefficients [groups][3][width]: mean, scale, beta.
void apply(const Layout& v, const float* x, const float* residual, const float* coefficients, bool relu, float* y) {
  with_flag(residual, [&](auto has_residual) {
    with_flag(relu, [&](auto has_relu) {
      parallel_for(v.tasks(), 1, [=](int64_t begin, int64_t end) {
        RowWriter writer(v, y, true);
        // Backwards: what the statistics pass read last is still in cache.
        for (int64_t task = end - 1; task >= begin; --task) {
          const float* mean = coefficients + v.group_of(task) * 3 * v.width;
          const float *scale = mean + v.width, *beta = scale + v.width;
          for_wide_rows(v, task, [&](int64_t at, int64_t n) {
            float* to = writer.begin(at, n);
#pragma omp simd
            for (int64_t j = 0; j < n; ++j) {
              float value = affine(x[at + j], mean[j], scale[j], beta[j]);
              if constexpr (has_residual) value += residual[at + j];
              if constexpr (has_relu) value = value < 0.f ? 0.f : value;  // NaN stays NaN
              to[j] = value;
            }
            writer.end(at, n);
          });
        }
      });
    });
  });
}

/// Where the ReLU's mask comes from in backward.
enum class Mask { none, from_x, from_y };

template <class F>
void with_mask(Mask mask, F&& f) {
  if (mask == Mask::none)
    f(std::integral_constant<Mask, Mask::none>{});
  else if (mask == Mask::from_x)
    f(std::integral_constant<Mask, Mask::from_x>{});
  else
    f(std::integral_constant<Mask, Mask::from_y>{});
}

/// What both backward passes read; coefficients [groups][5][width]: mean, scale, beta, then dx's two constants.
struct GradInputs {
  const float *dy, *dy2, *x, *y;
  const float* coefficients;
};

/// d = (dy + dy2) * mask at element i, lane j.
template <bool kHasDy2, Mask kMask>
inline float masked(const GradInputs& in, int64_t i, float mean, float scale, float beta) {
  float d = in.dy[i];
  if constexpr (kHasDy2) d += in.dy2[i];
  if constexpr (kMask == Mask::from_x) d = affine(in.x[i], mean, scale, beta) > 0.f ? d : 0.f;
  if constexpr (kMask == Mask::from_y) d = in.y[i] > 0.f ? d : 0.f;
  return d;
}

/// Sums over each chunk: sums[task] = [sum d, sum d * (x - mean)], width numbers each; dresidual (+)= d if wanted.
void chunk_gradients(const Layout& v, const GradInputs& in, Mask mask, float* dresidual, Write write, double* sums) {
  with_flag(in.dy2, [&](auto has_dy2) {
    with_mask(mask, [&](auto mask_kind) {
      with_flag(dresidual, [&](auto wants_residual) {
        with_flag(write == Write::accumulate, [&](auto accumulate) {
          parallel_for(v.tasks(), 1, [=](int64_t begin, int64_t end) {
            RowWriter writer(v, dresidual, wants_residual && !accumulate);
            for (int64_t task = begin; task < end; ++task) {
              double* __restrict s1 = sums + task * 2 * v.width;
              double* __restrict s2 = s1 + v.width;
              std::fill(s1, s1 + 2 * v.width, 0.0);
              const float* mean = in.coefficients + v.group_of(task) * 5 * v.width;
              const float *scale = mean + v.width, *beta = scale + v.width;
              const int64_t width = v.width;
              for_runs(v, task, [&](auto rows, int64_t at, int64_t n) {
                float* to = wants_residual ? writer.begin(at, rows * n) : nullptr;
#pragma omp simd
                for (int64_t j = 0; j < n; ++j) {
                  float sum = 0, products = 0;
                  for (int r = 0; r < rows; ++r) {
                    const int64_t i = at + r * width + j;
                    const float d = masked<has_dy2, mask_kind>(in, i, mean[j], scale[j], beta[j]);
                    if constexpr (wants_residual) {
                      float& out = to[r * width + j];
                      out = accumulate ? out + d : d;
                    }
                    sum += d;
                    products += d * (in.x[i] - mean[j]);
                  }
                  s1[j] += sum;
                  s2[j] += products;
                }
                if constexpr (wants_residual) writer.end(at, rows * n);
              });
              contract(v, s1);
              contract(v, s2);
            }
          });
        });
      });
    });
  });
}

/// dx (+)= scale * d + a * (x - mean) + b, coefficients [groups][5][width]: mean, scale, beta, a, b.
void apply_gradient(const Layout& v, const GradInputs& in, Mask mask, float* dx, Write write) {
  with_flag(in.dy2, [&](auto has_dy2) {
    with_mask(mask, [&](auto mask_kind) {
      with_flag(write == Write::accumulate, [&](auto accumulate) {
        parallel_for(v.tasks(), 1, [=](int64_t begin, int64_t end) {
          RowWriter writer(v, dx, !accumulate);
          for (int64_t task = end - 1; task >= begin; --task) {
            const float* mean = in.coefficients + v.group_of(task) * 5 * v.width;
            const float *scale = mean + v.width, *beta = scale + v.width, *a = beta + v.width, *b = a + v.width;
            for_wide_rows(v, task, [&](int64_t at, int64_t n) {
              float* to = writer.begin(at, n);
#pragma omp simd
              for (int64_t j = 0; j < n; ++j) {
                const float d = masked<has_dy2, mask_kind>(in, at + j, mean[j], scale[j], beta[j]);
                const float value = scale[j] * d + (a[j] * (in.x[at + j] - mean[j]) + b[j]);
                to[j] = accumulate ? to[j] + value : value;
              }
              writer.end(at, n);
            });
          }
        });
      });
    });
  });
}

float value_or(const float* array, int64_t c, float otherwise) { return array ? array[c] : otherwise; }

}  // namespace

void batch_norm(const Backend::BatchNorm& args) {
  constexpr const char* kOp = "batch_norm";
  const Layout v = layout_of(kOp, args.x.shape, args.groups);
  const int64_t channels = v.channels;
  const Shape per_channel{channels}, per_group{v.groups, channels};
  check_like(kOp, "x", args.x, args.x.shape, true);
  check_like(kOp, "y", args.y, args.x.shape, true);
  check_like(kOp, "gamma", args.gamma, per_channel, false);
  check_like(kOp, "beta", args.beta, per_channel, false);
  check_like(kOp, "residual", args.residual, args.x.shape, false);
  check_like(kOp, "mean", args.mean, per_group, true);
  check_like(kOp, "rstd", args.rstd, per_group, true);
  check_like(kOp, "batch_mean", args.batch_mean, per_channel, false);
  check_like(kOp, "batch_var", args.batch_var, per_channel, false);
  CHECK(v.rows > 1 && channels > 0, "{}: a group of x {} has {} values per channel, needs 2 or more (fewer groups)",
        kOp, args.x.shape.text(), v.rows);
  const float* x = args.x.as<float>();
  const float *gamma = args.gamma.as<float>(), *beta = args.beta.as<float>();
  float *mean = args.mean.as<float>(), *rstd = args.rstd.as<float>();
  float *batch_mean = args.batch_mean.as<float>(), *batch_var = args.batch_var.as<float>();

  thread_local Scratch sums_scratch, coefficients_scratch;
  double* sums = sums_scratch.get<double>(v.tasks() * 2 * v.width);
  float* coefficients = coefficients_scratch.get<float>(v.groups * 3 * v.width);
  chunk_moments(v, x, sums);

  parallel_for(channels, 64, [=, eps = args.eps](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      double mean_of_groups = 0, var_of_groups = 0;
      for (int64_t g = 0; g < v.groups; ++g) {
        // Chan et al. 1979: merge (count, mean, sum of squared deviations) chunk by chunk.
        double count = 0, average = 0, squares = 0;
        for (int64_t i = g * v.chunks; i < (g + 1) * v.chunks; ++i) {
          const double n = static_cast<double>(v.rows_of(i)), s1 = sums[i * 2 * v.width + c];
          const double chunk_mean = x[v.first_row(i) * channels + c] + s1 / n;
          const double chunk_squares = std::max(0.0, sums[(i * 2 + 1) * v.width + c] - s1 * s1 / n);
          const double delta = chunk_mean - average, total = count + n;
          average += delta * n / total;
          squares += chunk_squares + delta * delta * count * n / total;
          count = total;
        }
        const double var = squares / count;
        mean[g * channels + c] = static_cast<float>(average);
        rstd[g * channels + c] = static_cast<float>(1.0 / std::sqrt(var + eps));
        mean_of_groups += average;
        var_of_groups += squares / (count - 1);
        float* lane = coefficients + g * 3 * v.width + c;
        lane[0] = mean[g * channels + c];
        lane[v.width] = value_or(gamma, c, 1.f) * rstd[g * channels + c];
        lane[2 * v.width] = value_or(beta, c, 0.f);
        for (int64_t k = 0; k < 3; ++k)
          for (int64_t j = channels; j < v.width; j += channels) lane[k * v.width + j] = lane[k * v.width];
      }
      if (batch_mean) batch_mean[c] = static_cast<float>(mean_of_groups / static_cast<double>(v.groups));
      if (batch_var) batch_var[c] = static_cast<float>(var_of_groups / static_cast<double>(v.groups));
    }
  });
  apply(v, x, args.residual.as<float>(), coefficients, args.relu, args.y.as<float>());
}

void batch_norm_grad(const Backend::BatchNormGrad& args) {
  constexpr const char* kOp = "batch_norm_grad";
  const Layout v = layout_of(kOp, args.x.shape, args.groups);
  const int64_t channels = v.channels;
  const Shape per_channel{channels}, per_group{v.groups, channels};
  const Mask mask = !args.relu ? Mask::none : args.has_residual ? Mask::from_y : Mask::from_x;
  check_like(kOp, "dy", args.dy, args.x.shape, true);
  check_like(kOp, "dy2", args.dy2, args.x.shape, false);
  check_like(kOp, "x", args.x, args.x.shape, true);
  check_like(kOp, "y", args.y, args.x.shape, mask == Mask::from_y);
  check_like(kOp, "gamma", args.gamma, per_channel, false);
  check_like(kOp, "beta", args.beta, per_channel, false);
  check_like(kOp, "mean", args.mean, per_group, true);
  check_like(kOp, "rstd", args.rstd, per_group, true);
  check_like(kOp, "dx", args.dx, args.x.shape, false);
  check_like(kOp, "dresidual", args.dresidual, args.x.shape, false);
  check_like(kOp, "dgamma", args.dgamma, per_channel, false);
  check_like(kOp, "dbeta", args.dbeta, per_channel, false);
  CHECK(v.rows > 0 && channels > 0, "{}: x {} is empty", kOp, args.x.shape.text());
  const float *gamma = args.gamma.as<float>(), *beta = args.beta.as<float>();
  const float *mean = args.mean.as<float>(), *rstd = args.rstd.as<float>();
  float *dgamma = args.dgamma.as<float>(), *dbeta = args.dbeta.as<float>();
  float* dresidual = args.dresidual.as<float>();

  thread_local Scratch sums_scratch, coefficients_scratch;
  double* sums = sums_scratch.get<double>(v.tasks() * 2 * v.width);
  float* coefficients = coefficients_scratch.get<float>(v.groups * 5 * v.width);
  for (int64_t g = 0; g < v.groups; ++g) {
    for (int64_t j = 0; j < v.width; ++j) {
      const int64_t c = j % channels;
      float* lane = coefficients + g * 5 * v.width + j;
      lane[0] = mean[g * channels + c];
      lane[v.width] = value_or(gamma, c, 1.f) * rstd[g * channels + c];
      lane[2 * v.width] = value_or(beta, c, 0.f);
    }
  }
  GradInputs in{args.dy.as<float>(), args.dy2.as<float>(), args.x.as<float>(), args.y.as<float>(), coefficients};
  chunk_gradients(v, in, mask, dresidual, args.dresidual_write, sums);

  parallel_for(channels, 64, [=, &args](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      double total_beta = 0, total_gamma = 0;
      for (int64_t g = 0; g < v.groups; ++g) {
        double s1 = 0, s2 = 0;
        for (int64_t i = g * v.chunks; i < (g + 1) * v.chunks; ++i) {
          s1 += sums[i * 2 * v.width + c];
          s2 += sums[(i * 2 + 1) * v.width + c];
        }
        const double r = rstd[g * channels + c], m = static_cast<double>(v.rows);
        total_beta += s1;
        total_gamma += s2 * r;
        float* lane = coefficients + g * 5 * v.width + c;
        const double scale = lane[v.width];
        lane[3 * v.width] = static_cast<float>(-scale * r * r * s2 / m);
        lane[4 * v.width] = static_cast<float>(-scale * s1 / m);
        for (int64_t k = 3; k < 5; ++k)
          for (int64_t j = channels; j < v.width; j += channels) lane[k * v.width + j] = lane[k * v.width];
      }
      if (dgamma)
        dgamma[c] = static_cast<float>(total_gamma + (args.dgamma_write == Write::accumulate ? dgamma[c] : 0.0));
      if (dbeta) dbeta[c] = static_cast<float>(total_beta + (args.dbeta_write == Write::accumulate ? dbeta[c] : 0.0));
    }
  });
  if (!args.dx) return;
  if (dresidual && args.dresidual_write == Write::overwrite) {  // it now holds d: one array to read instead of three
    in.dy = dresidual;
    in.dy2 = nullptr;
    apply_gradient(v, in, Mask::none, args.dx.as<float>(), args.dx_write);
  } else {
    apply_gradient(v, in, mask, args.dx.as<float>(), args.dx_write);
  }
}

void batch_norm_inference(const Backend::BatchNormInference& args) {
  constexpr const char* kOp = "batch_norm_inference";
  const Layout v = layout_of(kOp, args.x.shape, 1);
  const Shape per_channel{v.channels};
  check_like(kOp, "y", args.y, args.x.shape, false);
  check_like(kOp, "gamma", args.gamma, per_channel, false);
  check_like(kOp, "beta", args.beta, per_channel, false);
  check_like(kOp, "mean", args.mean, per_channel, true);
  check_like(kOp, "var", args.var, per_channel, true);
  check_like(kOp, "residual", args.residual, args.x.shape, false);
  if (args.x.size() == 0) return;
  const float *gamma = args.gamma.as<float>(), *beta = args.beta.as<float>();
  const float *mean = args.mean.as<float>(), *var = args.var.as<float>();
  thread_local Scratch scratch;
  float* coefficients = scratch.get<float>(3 * v.width);
  for (int64_t j = 0; j < v.width; ++j) {
    const int64_t c = j % v.channels;
    coefficients[j] = mean[c];
    coefficients[v.width + j] =
        static_cast<float>(value_or(gamma, c, 1.f) / std::sqrt(static_cast<double>(var[c]) + args.eps));
    coefficients[2 * v.width + j] = value_or(beta, c, 0.f);
  }
  apply(v, args.x.as<float>(), args.residual.as<float>(), coefficients, args.relu, args.y.as<float>());
}

}  // namespace csml::cpu
