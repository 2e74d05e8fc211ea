// Rows of unit length, and the gradient. x, y, dy, dx are f32, bf16 or f16, all of one type; norm is f32. A warp takes
// a row. The rows are the features of one batch (256 x 128 in f32: 131 KB), so both calls cost a launch.
#include "kernels/cuda/launch.cuh"

namespace csml::cuda {

namespace {

constexpr int kThreads = 128, kRowsOfBlock = kThreads / kWarp;

/// Bytes: reads x (twice, the second time from the first-level cache), writes y and norm; floor 2 M D b / bandwidth.
/// FLOPs: 3 an element.
template <int N, class T>
KERNEL void l2_normalize_kernel(const T* x, T* y, float* norm, int64_t rows, int64_t columns, float eps) {
  const int64_t row = static_cast<int64_t>(block().x) * kRowsOfBlock + warp();
  if (row >= rows) return;
  x += row * columns;
  y += row * columns;
  float sum = 0;
  for (int64_t i = lane() * N; i < columns; i += kWarp * N) {
    const Pack<T, N> v = load_pack<N>(x + i);
    for (int j = 0; j < N; ++j) sum += float(v[j]) * float(v[j]);
  }
  const float length = std::sqrt(warp_sum(sum)), denominator = length < eps ? eps : length;  // NaN stays NaN
  if (lane() == 0) norm[row] = denominator;
  for (int64_t i = lane() * N; i < columns; i += kWarp * N) {
    Pack<T, N> v = load_pack<N>(x + i);
    for (int j = 0; j < N; ++j) v[j] = T(float(v[j]) / denominator);
    store_pack(y + i, v);
  }
}

/// Bytes: reads dy, y (twice, as above) and norm, writes dx (and reads it where it accumulates); floor 3 M D b /
/// bandwidth. FLOPs: 5 an element.
template <int N, class T>
KERNEL void l2_normalize_grad_kernel(const T* dy, const T* y, const float* norm, T* dx, int64_t rows, int64_t columns,
                                     bool accumulate) {
  const int64_t row = static_cast<int64_t>(block().x) * kRowsOfBlock + warp();
  if (row >= rows) return;
  dy += row * columns;
  y += row * columns;
  dx += row * columns;
  float sum = 0;
  for (int64_t i = lane() * N; i < columns; i += kWarp * N) {
    const Pack<T, N> d = load_pack<N>(dy + i), v = load_pack<N>(y + i);
    for (int j = 0; j < N; ++j) sum += float(d[j]) * float(v[j]);
  }
  const float along = warp_sum(sum), scale = 1.f / norm[row];
  for (int64_t i = lane() * N; i < columns; i += kWarp * N) {
    const Pack<T, N> d = load_pack<N>(dy + i), v = load_pack<N>(y + i);
    Pack<T, N> out{};
    if (accumulate) out = load_pack<N>(dx + i);
    for (int j = 0; j < N; ++j) {
      const float value = (float(d[j]) - along * float(v[j])) * scale;
      out[j] = T(accumulate ? float(out[j]) + value : value);
    }
    store_pack(dx + i, out);
  }
}

void check_rows(const char* op, const ConstView& x, const ConstView& norm) {
  CHECK(x.shape.rank() == 2, "{}: rows must be [M, D], got {}", op, x.shape.text());
  CHECK(norm.shape == Shape{x.shape[0]}, "{}: norm is {}, must be [{}]", op, norm.shape.text(), x.shape[0]);
}

}  // namespace

void l2_normalize(Context& context, const Backend::L2Normalize& args) {
  check_rows("l2_normalize", args.x, args.norm);
  check_same("l2_normalize", args.x, args.y);
  const int64_t rows = args.x.shape[0], columns = args.x.shape[1];
  with_width(args.x.dtype, columns, {args.x.data, args.y.data}, [&]<class T, int N>(T, Width<N>) {
    launch(context, {.name = "l2_normalize", .grid = {ceil_div(rows, kRowsOfBlock)}, .threads = kThreads},
           l2_normalize_kernel<N, T>, args.x.as<T>(), args.y.as<T>(), args.norm.as<float>(), rows, columns, args.eps);
  });
}

void l2_normalize_grad(Context& context, const Backend::L2NormalizeGrad& args) {
  check_rows("l2_normalize_grad", args.y, args.norm);
  check_same("l2_normalize_grad", args.y, args.dy);
  check_same("l2_normalize_grad", args.y, args.dx);
  const int64_t rows = args.y.shape[0], columns = args.y.shape[1];
  with_width(args.y.dtype, columns, {args.dy.data, args.y.data, args.dx.data}, [&]<class T, int N>(T, Width<N>) {
    launch(context, {.name = "l2_normalize_grad", .grid = {ceil_div(rows, kRowsOfBlock)}, .threads = kThreads},
           l2_normalize_grad_kernel<N, T>, args.dy.as<T>(), args.y.as<T>(), args.norm.as<float>(), args.dx.as<T>(),
           rows, columns, args.write == Write::accumulate);
  });
}

}  // namespace csml::cuda
