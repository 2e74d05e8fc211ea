// Max pooling and global average pooling, with gradients. x, y, dy, dx are f32, bf16 or f16, all of one type. A thread
// computes one pack of channels of one pixel; every array crosses memory once, so the floors are bytes / bandwidth.
#include "kernels/cuda/launch.cuh"

namespace csml::cuda {

namespace {

struct Window {
  int64_t n;
  int h, w, c, p, q;  // x [n,h,w,c], y [n,p,q,c]
  int size, stride, pad;
};

/// The item-th of images x height x width pixels x packs of channels. One long division: the rest fits 32 bits.
struct Pixel {
  int64_t image;
  int row, column, channel;

  template <int N>
  DEVICE static Pixel of(int64_t item, int height, int width, int channels) {
    const unsigned packs = static_cast<unsigned>(channels / N), line = static_cast<unsigned>(width) * packs;
    const int64_t image = item / (int64_t{height} * line);
    const unsigned rest = static_cast<unsigned>(item - image * height * line), at = rest % line;
    return {image, static_cast<int>(rest / line), static_cast<int>(at / packs), static_cast<int>(at % packs) * N};
  }
};

/// Bytes: reads x (pixels in several windows from the caches), writes y and argmax; with n_x and n_y elements of b
/// bytes n_x b + n_y (b + 1). FLOPs: window^2 comparisons for each y.
template <int N, class T>
KERNEL void max_pool_kernel(Window v, const T* x, T* y, uint8_t* argmax) {
  const int64_t items = v.n * v.p * v.q * (v.c / N);
  for (int64_t item = grid_thread(); item < items; item += grid_threads()) {
    const Pixel at = Pixel::of<N>(item, v.p, v.q, v.c);
    const int h0 = at.row * v.stride - v.pad, w0 = at.column * v.stride - v.pad;
    const int r0 = max(0, -h0), r1 = min(v.size, v.h - h0), s0 = max(0, -w0), s1 = min(v.size, v.w - w0);
    Pack<T, N> best{};
    Pack<uint8_t, N> index{};
    for (int r = r0; r < r1; ++r)
      for (int s = s0; s < s1; ++s) {
        const Pack<T, N> here = load_pack<N>(x + ((at.image * v.h + h0 + r) * v.w + w0 + s) * v.c + at.channel);
        const bool first = r == r0 && s == s0;
        for (int j = 0; j < N; ++j) {
          const float value = float(here[j]);
          if (!(first || value > float(best[j]) || value != value)) continue;  // NaN wins and then stays
          best[j] = here[j];
          index[j] = static_cast<uint8_t>(r * v.size + s);
        }
      }
    store_pack(y + item * N, best);
    store_pack(argmax + item * N, index);
  }
}

/// Windows first ... last along one axis that cover an input position.
struct Cover {
  int first, last;
  DEVICE Cover(int at, int windows, const Window& v) {
    const int over = at + v.pad - v.size;  // o * stride > over
    first = over < 0 ? 0 : over / v.stride + 1;
    last = min(windows - 1, (at + v.pad) / v.stride);
  }
};

/// Every input pixel collects from the windows that cover it: no atomics, no clearing. Bytes: reads dy and argmax,
/// writes dx (and reads it where it accumulates): n_y (b + 1) + n_x b. FLOPs: a comparison and a sum for each y.
template <int N, class T>
KERNEL void max_pool_grad_kernel(Window v, const T* dy, const uint8_t* argmax, T* dx, bool accumulate) {
  const int64_t items = v.n * v.h * v.w * (v.c / N);
  for (int64_t item = grid_thread(); item < items; item += grid_threads()) {
    const Pixel at = Pixel::of<N>(item, v.h, v.w, v.c);
    const Cover rows(at.row, v.p, v), columns(at.column, v.q, v);
    float sum[N] = {};
    Pack<T, N> out{};
    if (accumulate) {
      out = load_pack<N>(dx + item * N);
      for (int j = 0; j < N; ++j) sum[j] = float(out[j]);
    }
    for (int p = rows.first; p <= rows.last; ++p)
      for (int q = columns.first; q <= columns.last; ++q) {
        const int64_t from = ((at.image * v.p + p) * v.q + q) * v.c + at.channel;
        const Pack<T, N> d = load_pack<N>(dy + from);
        const Pack<uint8_t, N> index = load_pack<N>(argmax + from);
        const int here = (at.row + v.pad - p * v.stride) * v.size + at.column + v.pad - q * v.stride;
        for (int j = 0; j < N; ++j) sum[j] += index[j] == here ? float(d[j]) : 0.f;
      }
    for (int j = 0; j < N; ++j) out[j] = T(sum[j]);
    store_pack(dx + item * N, out);
  }
}

constexpr int kRun = 8;  // pixels in flight and summed alone before they join the total

/// Bytes: reads x, writes y (1 / pixels of that). FLOPs: 1 an element.
template <int N, class T>
KERNEL void global_avg_pool_kernel(const T* x, T* y, int64_t images, int64_t pixels, int64_t channels) {
  const int64_t packs = channels / N;
  const float scale = 1.f / static_cast<float>(pixels);
  for (int64_t item = grid_thread(); item < images * packs; item += grid_threads()) {
    const T* from = x + (item / packs * pixels * packs + item % packs) * N;
    float total[N] = {};
    for (int64_t i = 0; i < pixels; i += kRun) {
      Pack<T, N> v[kRun];
      for (int r = 0; r < kRun; ++r) v[r] = i + r < pixels ? load_pack<N>(from + (i + r) * channels) : Pack<T, N>{};
      for (int j = 0; j < N; ++j) {
        float sum = 0;
        for (int r = 0; r < kRun; ++r) sum += float(v[r][j]);
        total[j] += sum;
      }
    }
    Pack<T, N> out;
    for (int j = 0; j < N; ++j) out[j] = T(total[j] * scale);
    store_pack(y + item * N, out);
  }
}

/// Bytes: reads dy, writes dx (and reads it where it accumulates). FLOPs: 1 an element.
template <int N, class T>
KERNEL void global_avg_pool_grad_kernel(const T* dy, T* dx, Window v, bool accumulate) {
  const int64_t items = v.n * v.h * v.w * (v.c / N);
  const float scale = 1.f / static_cast<float>(int64_t{v.h} * v.w);
  for (int64_t item = grid_thread(); item < items; item += grid_threads()) {
    const Pixel at = Pixel::of<N>(item, v.h, v.w, v.c);
    const Pack<T, N> d = load_pack<N>(dy + at.image * v.c + at.channel);
    Pack<T, N> out{};
    if (accumulate) out = load_pack<N>(dx + item * N);
    for (int j = 0; j < N; ++j) out[j] = T(accumulate ? float(out[j]) + float(d[j]) * scale : float(d[j]) * scale);
    store_pack(dx + item * N, out);
  }
}

// ---- host side ------------------------------------------------------------------------------------------------------

/// Of images x; one image must have fewer than 2^31 elements.
Window images_of(const char* op, const Shape& x) {
  CHECK(x.rank() == 4, "{}: needs images [N,H,W,C], got {}", op, x.text());
  CHECK(x.row_size() <= std::numeric_limits<int32_t>::max(), "{}: an image of {} has {} elements, at most 2^31 - 1", op,
        x.text(), x.row_size());
  const auto extent = [&](int i) { return static_cast<int>(x[i]); };
  return {x[0], extent(1), extent(2), extent(3), 0, 0, 0, 0, 0};
}

Window check_window(const char* op, const Shape& x, const Shape& y, const ConstView& argmax, int size, int stride,
                    int pad) {
  CHECK(x.rank() == 4 && y.rank() == 4 && argmax.shape == y && argmax.dtype == DType::u8,
        "{}: needs images [N,H,W,C] and an argmax u8 of y's shape, got x {}, y {}, argmax {} {}", op, x.text(),
        y.text(), name_of(argmax.dtype), argmax.shape.text());
  CHECK(size >= 1 && size <= 16 && stride >= 1 && pad >= 0 && pad < size,
        "{}: window {} (1 to 16), stride {}, pad {} (below the window)", op, size, stride, pad);
  CHECK(x[1] + 2 * pad >= size && x[2] + 2 * pad >= size, "{}: x {} is smaller than the window {}", op, x.text(), size);
  Window v = images_of(op, x);
  v.p = (v.h + 2 * pad - size) / stride + 1;
  v.q = (v.w + 2 * pad - size) / stride + 1;
  v.size = size;
  v.stride = stride;
  v.pad = pad;
  const Shape want{v.n, v.p, v.q, v.c};
  CHECK(y == want, "{}: x {} gives y {}, not {}", op, x.text(), want.text(), y.text());
  return v;
}

}  // namespace

void max_pool(Context& context, const Backend::MaxPool& args) {
  const Window v =
      check_window("max_pool", args.x.shape, args.y.shape, args.argmax, args.window, args.stride, args.pad);
  with_width(args.x.dtype, v.c, {args.x.data, args.y.data, args.argmax.data}, [&]<class T, int N>(T, Width<N>) {
    launch(context, {.name = "max_pool", .grid = grid_for(context, args.y.size() / N)}, max_pool_kernel<N, T>, v,
           args.x.as<T>(), args.y.as<T>(), args.argmax.as<uint8_t>());
  });
}

void max_pool_grad(Context& context, const Backend::MaxPoolGrad& args) {
  const Window v =
      check_window("max_pool_grad", args.dx.shape, args.dy.shape, args.argmax, args.window, args.stride, args.pad);
  with_width(args.dx.dtype, v.c, {args.dy.data, args.dx.data, args.argmax.data}, [&]<class T, int N>(T, Width<N>) {
    launch(context, {.name = "max_pool_grad", .grid = grid_for(context, args.dx.size() / N)},
           max_pool_grad_kernel<N, T>, v, args.dy.as<T>(), args.argmax.as<uint8_t>(), args.dx.as<T>(),
           args.write == Write::accumulate);
  });
}

void global_avg_pool(Context& context, const Backend::GlobalAvgPool& args) {
  const Shape& shape = args.x.shape;
  CHECK(shape.rank() == 4 && args.y.shape == (Shape{shape[0], shape[3]}), "global_avg_pool: x {} does not give y {}",
        shape.text(), args.y.shape.text());
  const int64_t pixels = shape[1] * shape[2];
  CHECK(pixels > 0, "global_avg_pool: x {} has no pixels", shape.text());
  with_width(args.x.dtype, shape[3], {args.x.data, args.y.data}, [&]<class T, int N>(T, Width<N>) {
    launch(context, {.name = "global_avg_pool", .grid = grid_for(context, args.y.size() / N)},
           global_avg_pool_kernel<N, T>, args.x.as<T>(), args.y.as<T>(), shape[0], pixels, shape[3]);
  });
}

void global_avg_pool_grad(Context& context, const Backend::GlobalAvgPoolGrad& args) {
  const Shape& shape = args.dx.shape;
  const Window v = images_of("global_avg_pool_grad", shape);
  CHECK(args.dy.shape == (Shape{shape[0], shape[3]}), "global_avg_pool_grad: dy {} does not give dx {}",
        args.dy.shape.text(), shape.text());
  with_width(args.dx.dtype, v.c, {args.dy.data, args.dx.data}, [&]<class T, int N>(T, Width<N>) {
    launch(context, {.name = "global_avg_pool_grad", .grid = grid_for(context, args.dx.size() / N)},
           global_avg_pool_grad_kernel<N, T>, args.dy.as<T>(), args.dx.as<T>(), v, args.write == Write::accumulate);
  });
}

}  // namespace csml::cuda
