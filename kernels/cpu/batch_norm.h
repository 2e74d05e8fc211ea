// The passes of batch norm and of its gradient over x on the CPU, and the merging of their sums.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <utility>

#include "kernels/cpu/norm_layout.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/scratch.h"

namespace csml::cpu::norm {

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
  const auto pass = [&](auto has_residual, auto has_relu) {
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
  };
  with_flags(pass, residual != nullptr, relu);
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

/// Sums over one chunk: sums = [sum d, sum d * (x - mean)], width numbers each; dresidual (+)= d if wanted.
template <bool kHasDy2, Mask kMask, bool kWantsResidual, bool kAccumulate>
void chunk_gradient(const Layout& v, int64_t task, const GradInputs& in, RowWriter& writer, double* sums) {
  double* __restrict s1 = sums;
  double* __restrict s2 = s1 + v.width;
  std::fill(s1, s1 + 2 * v.width, 0.0);
  const float* mean = in.coefficients + v.group_of(task) * 5 * v.width;
  const float *scale = mean + v.width, *beta = scale + v.width;
  const int64_t width = v.width;
  for_runs(v, task, [&](auto rows, int64_t at, int64_t n) {
    float* to = kWantsResidual ? writer.begin(at, rows * n) : nullptr;
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      float sum = 0, products = 0;
      for (int r = 0; r < rows; ++r) {
        const int64_t i = at + r * width + j;
        const float d = masked<kHasDy2, kMask>(in, i, mean[j], scale[j], beta[j]);
        if constexpr (kWantsResidual) {
          float& out = to[r * width + j];
          out = kAccumulate ? out + d : d;
        }
        sum += d;
        products += d * (in.x[i] - mean[j]);
      }
      s1[j] += sum;
      s2[j] += products;
    }
    if constexpr (kWantsResidual) writer.end(at, rows * n);
  });
  contract(v, s1);
  contract(v, s2);
}

/// chunk_gradient() of every chunk: sums[task] = [sum d, sum d * (x - mean)].
inline void chunk_gradients(const Layout& v, const GradInputs& in, Mask mask, float* dresidual, Write write,
                            double* sums) {
  const auto pass = [&](auto mask_kind, auto has_dy2, auto wants_residual, auto accumulate) {
    parallel_for(v.tasks(), 1, [=](int64_t begin, int64_t end) {
      RowWriter writer(v, dresidual, wants_residual && !accumulate);
      for (int64_t task = begin; task < end; ++task)
        chunk_gradient<has_dy2, mask_kind, wants_residual, accumulate>(v, task, in, writer, sums + task * 2 * v.width);
    });
  };
  with_mask(mask, [&](auto kind) {
    with_flags([&](auto... flags) { pass(kind, flags...); }, in.dy2 != nullptr, dresidual != nullptr,
               write == Write::accumulate);
  });
}

/// One chunk of apply_gradient().
template <bool kHasDy2, Mask kMask, bool kAccumulate>
void apply_chunk_gradient(const Layout& v, int64_t task, const GradInputs& in, RowWriter& writer) {
  const float* mean = in.coefficients + v.group_of(task) * 5 * v.width;
  const float *scale = mean + v.width, *beta = scale + v.width, *a = beta + v.width, *b = a + v.width;
  for_wide_rows(v, task, [&](int64_t at, int64_t n) {
    float* to = writer.begin(at, n);
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      const float d = masked<kHasDy2, kMask>(in, at + j, mean[j], scale[j], beta[j]);
      const float value = scale[j] * d + (a[j] * (in.x[at + j] - mean[j]) + b[j]);
      to[j] = kAccumulate ? to[j] + value : value;
    }
    writer.end(at, n);
  });
}

/// dx (+)= scale * d + a * (x - mean) + b, coefficients [groups][5][width]: mean, scale, beta, a, b.
inline void apply_gradient(const Layout& v, const GradInputs& in, Mask mask, float* dx, Write write) {
  const auto pass = [&](auto mask_kind, auto has_dy2, auto accumulate) {
    parallel_for(v.tasks(), 1, [=](int64_t begin, int64_t end) {
      RowWriter writer(v, dx, !accumulate);
      for (int64_t task = end - 1; task >= begin; --task)
        apply_chunk_gradient<has_dy2, mask_kind, accumulate>(v, task, in, writer);
    });
  };
  with_mask(mask, [&](auto kind) {
    with_flags([&](auto... flags) { pass(kind, flags...); }, in.dy2 != nullptr, write == Write::accumulate);
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

/// Merges the moments of channel c of group g, chunk by chunk, from what chunk_moments() left.
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
