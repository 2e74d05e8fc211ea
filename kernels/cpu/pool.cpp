#include <cstring>
#include <type_traits>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/stream.h"

namespace csml::cpu {

namespace {

constexpr int kMaxWindow = 16;  // its places fit u8
#if defined(__AVX512F__)
constexpr int64_t kLanes = 16;  // channels handled at once, in one register
#elif defined(__AVX2__)
constexpr int64_t kLanes = 8;
#else
constexpr int64_t kLanes = 4;
#endif
using Floats = float __attribute__((vector_size(4 * kLanes)));
using Ints = int32_t __attribute__((vector_size(4 * kLanes)));
using Bytes = uint8_t __attribute__((vector_size(kLanes)));

/// body(first channel, how many): whole vectors first, whose count is a constant of the compiler, then the rest.
template <class Body>
void for_lanes(int64_t channels, Body&& body) {
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) body(c, std::integral_constant<int64_t, kLanes>());
  if (c < channels) body(c, channels - c);
}

/// The first elements of v; the others keep what they had.
template <class Vector, class T>
void load(Vector& v, const T* from, int64_t count) {
  std::memcpy(&v, from, static_cast<size_t>(count) * sizeof(T));
}

/// wide[i] = from[i]; the others keep what they had.
inline void widen(Ints& wide, const uint8_t* from, int64_t count) {
#if defined(__AVX512F__)
  __m128i narrow = _mm_setzero_si128();
  std::memcpy(&narrow, from, static_cast<size_t>(count));
  const __m512i all = _mm512_maskz_cvtepu8_epi32(0xffff, narrow);  // g++ 12 takes __builtin_convertvector apart here
  std::memcpy(&wide, &all, sizeof(wide));
#else
  for (int64_t i = 0; i < count; ++i) wide[i] = from[i];
#endif
}

struct Window {
  int64_t n, h, w, c, p, q;  // x [n,h,w,c], y [n,p,q,c]
  int size, stride, pad;
};

Window check_window(const char* op, const Shape& x, const Shape& y, const ConstView& argmax, int size, int stride,
                    int pad) {
  CHECK(x.rank() == 4 && y.rank() == 4 && argmax.shape == y && argmax.dtype == DType::u8,
        "{}: needs images [N,H,W,C] and an argmax u8 of y's shape, got x {}, y {}, argmax {} {}", op, x.text(),
        y.text(), name_of(argmax.dtype), argmax.shape.text());
  CHECK(size >= 1 && size <= kMaxWindow && stride >= 1 && pad >= 0 && pad < size,
        "{}: window {} (1 to 16), stride {}, pad {} (below the window)", op, size, stride, pad);
  CHECK(x[1] + 2 * pad >= size && x[2] + 2 * pad >= size, "{}: x {} is smaller than the window {}", op, x.text(), size);
  const Window v{x[0], x[1],   x[2], x[3], (x[1] + 2 * pad - size) / stride + 1, (x[2] + 2 * pad - size) / stride + 1,
                 size, stride, pad};
  CHECK(y == (Shape{v.n, v.p, v.q, v.c}), "{}: x {} gives y {}, not {}", op, x.text(),
        (Shape{v.n, v.p, v.q, v.c}).text(), y.text());
  return v;
}

/// One output pixel.
void max_over_window(const Window& v, const float* image, int64_t p, int64_t q, float* y, uint8_t* argmax) {
  const int64_t h0 = p * v.stride - v.pad, w0 = q * v.stride - v.pad;
  const int64_t r0 = std::max<int64_t>(0, -h0), r1 = std::min<int64_t>(v.size, v.h - h0);
  const int64_t s0 = std::max<int64_t>(0, -w0), s1 = std::min<int64_t>(v.size, v.w - w0);
  const auto pixel = [&](int64_t r, int64_t s) { return image + ((h0 + r) * v.w + w0 + s) * v.c; };
  for_lanes(v.c, [&](int64_t c, auto count) {
    Floats best{}, x{};
    load(best, pixel(r0, s0) + c, count);
    Ints index = Ints{} + static_cast<int32_t>(r0 * v.size + s0);
    for (int64_t r = r0; r < r1; ++r) {
      for (int64_t s = s0; s < s1; ++s) {
        load(x, pixel(r, s) + c, count);
        const Ints wins = (x > best) | (x != x);  // NaN wins and then stays
        best = wins ? x : best;
        index = wins ? Ints{} + static_cast<int32_t>(r * v.size + s) : index;
      }
    }
    const Bytes narrow = __builtin_convertvector(index, Bytes);
    std::memcpy(y + c, &best, static_cast<size_t>(count) * sizeof(float));
    std::memcpy(argmax + c, &narrow, static_cast<size_t>(count));
  });
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
        max_over_window(v, image, row % v.p, q, y + at, argmax + at);
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
  const bool streamed = !accumulate && v.c % kLanes == 0 && args.dx.bytes() >= kStreamMinBytes &&
                        reinterpret_cast<uintptr_t>(dx) % kStreamBytes == 0;
  // Every input pixel collects from the windows that cover it: no races, no clearing, one write.
  parallel_for(v.n * v.h, 1, [=](int64_t begin, int64_t end) {
    const auto covering = [&](int64_t at, int64_t windows) {  // windows o with 0 <= at + pad - o * stride < size
      const int64_t last = std::min(windows - 1, (at + v.pad) / v.stride);
      const int64_t over = at + v.pad - v.size;  // o * stride > over
      return std::pair{over < 0 ? int64_t{0} : over / v.stride + 1, last};
    };
    struct {
      int64_t at;    // of the window's output pixel
      int32_t here;  // this input pixel's index in it
    } cover[kMaxWindow * kMaxWindow];
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = row / v.h, h = row % v.h;
      const auto [p0, p1] = covering(h, v.p);
      for (int64_t w = 0; w < v.w; ++w) {
        const auto [q0, q1] = covering(w, v.q);
        float* out = dx + (row * v.w + w) * v.c;
        int covers = 0;
        for (int64_t p = p0; p <= p1; ++p)
          for (int64_t q = q0; q <= q1; ++q)
            cover[covers++] = {((n * v.p + p) * v.q + q) * v.c,
                               static_cast<int32_t>((h + v.pad - p * v.stride) * v.size + w + v.pad - q * v.stride)};
        for_lanes(v.c, [&](int64_t c, auto count) {
          Floats sum{}, d{};
          Ints from{};
          if (accumulate) load(sum, out + c, count);
          for (int i = 0; i < covers; ++i) {
            load(d, dy + cover[i].at + c, count);
            widen(from, argmax + cover[i].at + c, count);
            sum += from == cover[i].here ? d : Floats{};
          }
          if (streamed) {
            alignas(kStreamBytes) const Floats aligned = sum;
            stream_row(out + c, reinterpret_cast<const float*>(&aligned), kLanes);
          } else {
            std::memcpy(out + c, &sum, static_cast<size_t>(count) * sizeof(float));
          }
        });
      }
    }
    if (streamed) end_stream();
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
  constexpr int64_t kBlock = 512;  // channels of one task: long enough to read ahead, sums stay in the first cache
  constexpr int64_t kRun = 32;     // pixels summed alone before they join the total: rounding stays small
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
