#include <cstring>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/parallel.h"

namespace csml::cpu {

namespace {

constexpr int64_t kBlock = 64;  // channels handled at once: accumulators stay in registers or the first cache

struct Window {
  int64_t n, h, w, c, p, q;  // x [n,h,w,c], y [n,p,q,c]
  int size, stride, pad;
};

Window check_window(const char* op, const Shape& x, const Shape& y, const ConstView& argmax, int size, int stride,
                    int pad) {
  CHECK(x.rank() == 4 && y.rank() == 4 && argmax.shape == y && argmax.dtype == DType::u8,
        "{}: needs images [N,H,W,C] and an argmax u8 of y's shape, got x {}, y {}, argmax {} {}", op, x.text(),
        y.text(), name_of(argmax.dtype), argmax.shape.text());
  CHECK(size >= 1 && size <= 16 && stride >= 1 && pad >= 0 && pad < size,
        "{}: window {} (1 to 16), stride {}, pad {} (below the window)", op, size, stride, pad);
  CHECK(x[1] + 2 * pad >= size && x[2] + 2 * pad >= size, "{}: x {} is smaller than the window {}", op, x.text(), size);
  const Window v{x[0], x[1],   x[2], x[3], (x[1] + 2 * pad - size) / stride + 1, (x[2] + 2 * pad - size) / stride + 1,
                 size, stride, pad};
  CHECK(y == (Shape{v.n, v.p, v.q, v.c}), "{}: x {} gives y {}, not {}", op, x.text(),
        (Shape{v.n, v.p, v.q, v.c}).text(), y.text());
  return v;
}

/// best, index of one output pixel over `count` channels.
void max_over_window(const Window& v, const float* image, int64_t p, int64_t q, int64_t c0, int64_t count, float* y,
                     uint8_t* argmax) {
  float best[kBlock];
  int32_t index[kBlock];
  const int64_t h0 = p * v.stride - v.pad, w0 = q * v.stride - v.pad;
  const int64_t r0 = std::max<int64_t>(0, -h0), r1 = std::min<int64_t>(v.size, v.h - h0);
  const int64_t s0 = std::max<int64_t>(0, -w0), s1 = std::min<int64_t>(v.size, v.w - w0);
  const auto pixel = [&](int64_t r, int64_t s) { return image + ((h0 + r) * v.w + w0 + s) * v.c + c0; };
  const float* first = pixel(r0, s0);
  const int32_t first_index = static_cast<int32_t>(r0 * v.size + s0);
  for (int64_t c = 0; c < count; ++c) best[c] = first[c];
  for (int64_t c = 0; c < count; ++c) index[c] = first_index;
  for (int64_t r = r0; r < r1; ++r) {
    for (int64_t s = s0; s < s1; ++s) {
      const float* x = pixel(r, s);
      const int32_t here = static_cast<int32_t>(r * v.size + s);
#pragma omp simd
      for (int64_t c = 0; c < count; ++c) {
        const bool wins = (x[c] > best[c]) | (x[c] != x[c]);  // NaN wins and then stays
        best[c] = wins ? x[c] : best[c];
        index[c] = wins ? here : index[c];
      }
    }
  }
  std::memcpy(y, best, static_cast<size_t>(count) * sizeof(float));
  for (int64_t c = 0; c < count; ++c) argmax[c] = static_cast<uint8_t>(index[c]);
}

}  // namespace

void max_pool(const Backend::MaxPool& args) {
  const Window v =
      check_window("max_pool", args.x.shape, args.y.shape, args.argmax, args.window, args.stride, args.pad);
  const float* x = args.x.as<float>();
  float* y = args.y.as<float>();
  uint8_t* argmax = args.argmax.as<uint8_t>();
  parallel_for(v.n * v.p, 1, [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* image = x + row / v.p * v.h * v.w * v.c;
      for (int64_t q = 0; q < v.q; ++q) {
        const int64_t at = (row * v.q + q) * v.c;
        for (int64_t c = 0; c < v.c; c += kBlock)
          max_over_window(v, image, row % v.p, q, c, std::min(kBlock, v.c - c), y + at + c, argmax + at + c);
      }
    }
  });
}

void max_pool_grad(const Backend::MaxPoolGrad& args) {
  const Window v =
      check_window("max_pool_grad", args.dx.shape, args.dy.shape, args.argmax, args.window, args.stride, args.pad);
  const float* dy = args.dy.as<float>();
  const uint8_t* argmax = args.argmax.as<uint8_t>();
  float* dx = args.dx.as<float>();
  const bool accumulate = args.write == Write::accumulate;
  // Every input pixel collects from the windows that cover it: no races, no clearing, one write.
  parallel_for(v.n * v.h, 1, [=](int64_t begin, int64_t end) {
    const auto covering = [&](int64_t at, int64_t windows) {  // windows o with 0 <= at + pad - o * stride < size
      const int64_t last = std::min(windows - 1, (at + v.pad) / v.stride);
      const int64_t over = at + v.pad - v.size;  // o * stride > over
      return std::pair{over < 0 ? int64_t{0} : over / v.stride + 1, last};
    };
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = row / v.h, h = row % v.h;
      const auto [p0, p1] = covering(h, v.p);
      for (int64_t w = 0; w < v.w; ++w) {
        const auto [q0, q1] = covering(w, v.q);
        float* out = dx + (row * v.w + w) * v.c;
        for (int64_t c0 = 0; c0 < v.c; c0 += kBlock) {
          const int64_t count = std::min(kBlock, v.c - c0);
          float sum[kBlock];
          for (int64_t c = 0; c < count; ++c) sum[c] = accumulate ? out[c0 + c] : 0.f;
          for (int64_t p = p0; p <= p1; ++p) {
            for (int64_t q = q0; q <= q1; ++q) {
              const int64_t at = ((n * v.p + p) * v.q + q) * v.c + c0;
              const uint8_t here = static_cast<uint8_t>((h + v.pad - p * v.stride) * v.size + w + v.pad - q * v.stride);
#pragma omp simd
              for (int64_t c = 0; c < count; ++c) sum[c] += argmax[at + c] == here ? dy[at + c] : 0.f;
            }
          }
          std::memcpy(out + c0, sum, static_cast<size_t>(count) * sizeof(float));
        }
      }
    }
  });
}

void global_avg_pool(const Backend::GlobalAvgPool& args) {
  const Shape& shape = args.x.shape;
  CHECK(shape.rank() == 4 && args.y.shape == (Shape{shape[0], shape[3]}), "global_avg_pool: x {} does not give y {}",
        shape.text(), args.y.shape.text());
  const int64_t pixels = shape[1] * shape[2], channels = shape[3];
  CHECK(pixels > 0, "global_avg_pool: x {} has no pixels", shape.text());
  const float* x = args.x.as<float>();
  float* y = args.y.as<float>();
  const float scale = 1.f / static_cast<float>(pixels);
  constexpr int64_t kRun = 32;  // pixels summed alone before they join the total: rounding stays small
  const int64_t blocks = (channels + kBlock - 1) / kBlock;
  parallel_for(shape[0] * blocks, 1, [=](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t n = task / blocks, c0 = task % blocks * kBlock, count = std::min(kBlock, channels - c0);
      float total[kBlock] = {};
      for (int64_t i = 0; i < pixels; i += kRun) {
        float sum[kBlock] = {};
        for (int64_t j = i; j < std::min(pixels, i + kRun); ++j)
          for (int64_t c = 0; c < count; ++c) sum[c] += x[(n * pixels + j) * channels + c0 + c];
        for (int64_t c = 0; c < count; ++c) total[c] += sum[c];
      }
      for (int64_t c = 0; c < count; ++c) y[n * channels + c0 + c] = total[c] * scale;
    }
  });
}

void global_avg_pool_grad(const Backend::GlobalAvgPoolGrad& args) {
  const Shape& shape = args.dx.shape;
  CHECK(shape.rank() == 4 && args.dy.shape == (Shape{shape[0], shape[3]}),
        "global_avg_pool_grad: dy {} does not give dx {}", args.dy.shape.text(), shape.text());
  const int64_t pixels = shape[1] * shape[2], channels = shape[3];
  if (args.dx.size() == 0) return;
  const float* dy = args.dy.as<float>();
  float* __restrict dx = args.dx.as<float>();
  const float scale = 1.f / static_cast<float>(pixels);
  const bool accumulate = args.write == Write::accumulate;
  parallel_for(shape[0] * pixels, std::max<int64_t>(1, 32768 / channels), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float* from = dy + i / pixels * channels;
      float* __restrict to = dx + i * channels;
      if (accumulate)
        for (int64_t c = 0; c < channels; ++c) to[c] += from[c] * scale;
      else
        for (int64_t c = 0; c < channels; ++c) to[c] = from[c] * scale;
    }
  });
}

}  // namespace csml::cpu
