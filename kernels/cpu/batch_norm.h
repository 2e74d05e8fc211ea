// What batch norm, its gradient and their parts share on the CPU: how x is cut, the passes over it, merging of sums.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <utility>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/stream.h"

namespace csml::cpu::norm {

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

inline Layout layout_of(const char* op, const Shape& shape, int groups) {
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

inline void check_like(const char* op, const char* name, const ConstView& v, const Shape& shape, bool required) {
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
inline void expand(const Layout& v, const float* from, float* to) {
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
inline void contract(const Layout& v, double* sum) {
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
inline void chunk_moments(const Layout& v, const float* x, double* sums) {
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
inline void apply(const Layout& v, const float* x, const float* residual, const float* coefficients, bool relu,
                  float* y) {
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
inline void chunk_gradients(const Layout& v, const GradInputs& in, Mask mask, float* dresidual, Write write,
                            double* sums) {
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
inline void apply_gradient(const Layout& v, const GradInputs& in, Mask mask, float* dx, Write write) {
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

inline float value_or(const float* array, int64_t c, float otherwise) { return array ? array[c] : otherwise; }

/// Rows, their mean and the sum of their squared deviations from it.
struct Moments {
  double count = 0, mean = 0, squares = 0;

  /// Chan, Golub & LeVeque 1979.
  void merge(const Moments& other) {
    const double delta = other.mean - mean, total = count + other.count;
    mean += delta * other.count / total;
    squares += other.squares + delta * delta * count * other.count / total;
    count = total;
  }
};

/// Of channel c of group g, chunk by chunk, from what chunk_moments() left.
inline Moments group_moments(const Layout& v, const float* x, const double* sums, int64_t g, int64_t c) {
  Moments all;
  for (int64_t i = g * v.chunks; i < (g + 1) * v.chunks; ++i) {
    const double n = static_cast<double>(v.rows_of(i)), s1 = sums[i * 2 * v.width + c];
    all.merge(
        {n, x[v.first_row(i) * v.channels + c] + s1 / n, std::max(0.0, sums[(i * 2 + 1) * v.width + c] - s1 * s1 / n)});
  }
  return all;
}

/// Makes the rows of a group's coefficients, filled for the first C lanes, as wide as they are read.
inline void widen(const Layout& v, float* coefficients, int64_t first, int64_t last) {
  for (int64_t k = first; k < last; ++k)
    for (int64_t j = v.channels; j < v.width; ++j)
      coefficients[k * v.width + j] = coefficients[k * v.width + j - v.channels];
}

/// mean, scale and beta of all groups, the first three of `stride` rows of coefficients each.
inline void affine_coefficients(const Layout& v, const float* gamma, const float* beta, const float* mean,
                                const float* rstd, int64_t stride, float* coefficients) {
  for (int64_t g = 0; g < v.groups; ++g) {
    float* group = coefficients + g * stride * v.width;
    for (int64_t c = 0; c < v.channels; ++c) {
      group[c] = mean[g * v.channels + c];
      group[v.width + c] = value_or(gamma, c, 1.f) * rstd[g * v.channels + c];
      group[2 * v.width + c] = value_or(beta, c, 0.f);
    }
    widen(v, group, 0, 3);
  }
}

/// sum d and sum d * (x - mean) of channel c of group g, from what chunk_gradients() left.
inline std::pair<double, double> group_sums(const Layout& v, const double* sums, int64_t g, int64_t c) {
  double s1 = 0, s2 = 0;
  for (int64_t i = g * v.chunks; i < (g + 1) * v.chunks; ++i) {
    s1 += sums[i * 2 * v.width + c];
    s2 += sums[(i * 2 + 1) * v.width + c];
  }
  return {s1, s2};
}

inline Mask mask_of(bool relu, bool has_residual) {
  return !relu ? Mask::none : has_residual ? Mask::from_y : Mask::from_x;
}

}  // namespace csml::cpu::norm
