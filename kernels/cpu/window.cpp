#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/scratch.h"

namespace csml::cpu {

namespace {

struct Window {
  int64_t n, h, w, c, r, s;  // map [n,h,w,c], window [n,r,s,c]
};

Window check_window(const char* op, const Shape& map, const Shape& window, const ConstView& corner) {
  CHECK(map.rank() == 4 && window.rank() == 4 && map[0] == window[0] && map[3] == window[3] && window[1] <= map[1] &&
            window[2] <= map[2],
        "{}: no window {} in map {}", op, window.text(), map.text());
  CHECK(corner.shape == (Shape{map[0], 2}) && corner.dtype == DType::i32, "{}: corner is {} {}, must be i32 [{}, 2]",
        op, name_of(corner.dtype), corner.shape.text(), map[0]);
  return {map[0], map[1], map[2], map[3], window[1], window[2]};
}

void check_corners(const char* op, const Window& v, const int32_t* corner) {
  for (int64_t n = 0; n < v.n; ++n)
    CHECK(corner[2 * n] >= 0 && corner[2 * n] + v.r <= v.h && corner[2 * n + 1] >= 0 && corner[2 * n + 1] + v.s <= v.w,
          "{}: the window of {}x{} at ({}, {}) leaves the map of {}x{}", op, v.r, v.s, corner[2 * n], corner[2 * n + 1],
          v.h, v.w);
}

double dot(const float* a, const float* b, int64_t count) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

}  // namespace

void gather_window(const Backend::GatherWindow& args) {
  const Window v = check_window("gather_window", args.x.shape, args.y.shape, args.corner);
  const int32_t* corner = args.corner.as<int32_t>();
  check_corners("gather_window", v, corner);
  const float* x = args.x.as<float>();
  float* y = args.y.as<float>();
  parallel_for(v.n * v.r, 1, [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = row / v.r, h = corner[2 * n] + row % v.r, w = corner[2 * n + 1];
      std::memcpy(y + row * v.s * v.c, x + ((n * v.h + h) * v.w + w) * v.c,
                  static_cast<size_t>(v.s * v.c) * sizeof(float));
    }
  });
}

void gather_window_grad(const Backend::GatherWindowGrad& args) {
  const Window v = check_window("gather_window_grad", args.dx.shape, args.dy.shape, args.corner);
  const int32_t* corner = args.corner.as<int32_t>();
  check_corners("gather_window_grad", v, corner);
  const float* dy = args.dy.as<float>();
  float* dx = args.dx.as<float>();
  const bool accumulate = args.write == Write::accumulate;
  parallel_for(v.n * v.h, 1, [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = row / v.h, r = row % v.h - corner[2 * n], left = corner[2 * n + 1];
      float* to = dx + row * v.w * v.c;
      if (!accumulate) std::fill(to, to + v.w * v.c, 0.f);
      if (r < 0 || r >= v.r) continue;
      const float* from = dy + (n * v.r + r) * v.s * v.c;
      for (int64_t i = 0; i < v.s * v.c; ++i) to[left * v.c + i] += from[i];
    }
  });
}

void best_window(const Backend::BestWindow& args) {
  const Window v = check_window("best_window", args.x.shape, args.key.shape, args.corner);
  CHECK(args.stride >= 1, "best_window: stride {} must be at least 1", args.stride);
  const float *x = args.x.as<float>(), *key = args.key.as<float>();
  int32_t* corner = args.corner.as<int32_t>();
  const int64_t stride = args.stride;
  parallel_for(v.n, 1, [=](int64_t begin, int64_t end) {
    thread_local Scratch scratch;
    double* norms = scratch.get<double>(v.h * v.w + v.r * v.s);  // inverse, 0 where the norm is 0
    double* key_norms = norms + v.h * v.w;
    const auto inverse_norm = [&](const float* pixel) {
      const double squares = dot(pixel, pixel, v.c);
      return squares == 0 ? 0 : 1 / std::sqrt(squares);  // NaN stays NaN: such a window never wins
    };
    for (int64_t n = begin; n < end; ++n) {
      const float *map = x + n * v.h * v.w * v.c, *window = key + n * v.r * v.s * v.c;
      for (int64_t i = 0; i < v.h * v.w; ++i) norms[i] = inverse_norm(map + i * v.c);
      for (int64_t i = 0; i < v.r * v.s; ++i) key_norms[i] = inverse_norm(window + i * v.c);
      double best = -std::numeric_limits<double>::infinity();
      int64_t best_y = 0, best_x = 0;
      const int64_t last_y = v.h - v.r, last_x = v.w - v.s;
      for (int64_t i = 0; i < last_y + stride; i += stride) {
        const int64_t top = std::min(i, last_y);
        for (int64_t j = 0; j < last_x + stride; j += stride) {
          const int64_t left = std::min(j, last_x);
          double score = 0;
          for (int64_t r = 0; r < v.r; ++r)
            for (int64_t s = 0; s < v.s; ++s) {
              const int64_t at = (top + r) * v.w + left + s;
              score += dot(map + at * v.c, window + (r * v.s + s) * v.c, v.c) * norms[at] * key_norms[r * v.s + s];
            }
          if (score > best) best = score, best_y = top, best_x = left;
        }
      }
      corner[2 * n] = static_cast<int32_t>(best_y);
      corner[2 * n + 1] = static_cast<int32_t>(best_x);
    }
  });
}

}  // namespace csml::cpu
