// Elementwise calls, column sums and gather. Also the pattern for writing a family:
//  - include launch.cuh (or map.cuh) alone; its head lists every name a kernel may use. Kernels and functors live in an
//    anonymous namespace, the calls of kernels.h below them; a call checks its shapes, picks types and widths,
//    launches.
//  - values are computed in float whatever the element type; with_float_type turns a DType into a C++ type.
//  - an array may begin anywhere: take 16-byte vectors where every pointer is aligned, else single elements.
//  - results do not depend on the card: partial sums are cut by shape, added in a fixed order, without float atomics.
//  - nothing on the host depends on values in device memory; errors found there go through report().
//  - scratch memory comes from the context, at most one scratch() in a call.
// Activations (x, y, dy, dx of relu, relu_grad, axpy, copy, gather; y of fill; x of column_sum) are f32, bf16 or f16;
// axpy also converts: x and y may differ in type.
#include "kernels/cuda/map.cuh"

namespace csml::cuda {

namespace {

// ---- maps -----------------------------------------------------------------------------------------------------------

/// Bytes: writes y once.
template <class T>
struct FillOp {
  T* y;
  T value;

  template <int N>
  DEVICE void apply(int64_t i) const {
    Pack<T, N> out;
    for (int j = 0; j < N; ++j) out[j] = value;
    store_pack(y + i, out);
  }
};

/// Bytes: reads x, writes y.
template <class T>
struct CopyOp {
  const T* x;
  T* y;

  template <int N>
  DEVICE void apply(int64_t i) const {
    store_pack(y + i, load_pack<N>(x + i));
  }
};

/// Bytes: reads x (and y where it accumulates), writes y.
template <class X, class Y>
struct AxpyOp {
  const X* x;
  Y* y;
  float alpha;
  const float* scale;
  bool accumulate;

  template <int N>
  DEVICE void apply(int64_t i) const {
    const float a = scale ? alpha * *scale : alpha;
    const Pack<X, N> in = load_pack<N>(x + i);
    Pack<Y, N> out;
    if (accumulate) {
      out = load_pack<N>(y + i);
      for (int j = 0; j < N; ++j) out[j] = Y(float(out[j]) + a * float(in[j]));
    } else {
      for (int j = 0; j < N; ++j) out[j] = Y(a * float(in[j]));
    }
    store_pack(y + i, out);
  }
};

/// Bytes: reads x, writes y.
template <class T>
struct ReluOp {
  const T* x;
  T* y;

  template <int N>
  DEVICE void apply(int64_t i) const {
    Pack<T, N> v = load_pack<N>(x + i);
    for (int j = 0; j < N; ++j)
      if (float(v[j]) < 0) v[j] = T(0.f);  // NaN stays NaN
    store_pack(y + i, v);
  }
};

/// Bytes: reads dy and y (and dx where it accumulates), writes dx.
template <class T>
struct ReluGradOp {
  const T *dy, *y;
  T* dx;
  bool accumulate;

  template <int N>
  DEVICE void apply(int64_t i) const {
    Pack<T, N> d = load_pack<N>(dy + i);
    const Pack<T, N> value = load_pack<N>(y + i);
    for (int j = 0; j < N; ++j)
      if (!(float(value[j]) > 0)) d[j] = T(0.f);
    if (accumulate) {
      const Pack<T, N> old = load_pack<N>(dx + i);
      for (int j = 0; j < N; ++j) d[j] = T(float(old[j]) + float(d[j]));
    }
    store_pack(dx + i, d);
  }
};

// ---- column sums ----------------------------------------------------------------------------------------------------

constexpr int kSumThreads = 256;

/// partial[chunk, j] = sum of column j over the chunk's rows. A block takes `across` packs of N columns (a power of two
/// up to 32) and kSumThreads / across rows at a time. Bytes: reads x once.
template <int N, class T>
KERNEL void column_partial_kernel(const T* x, float* partial, int64_t rows, int64_t columns, int64_t chunk,
                                  int across) {
  SHARED(float, sums, kSumThreads* N);
  const int down = kSumThreads / across, mine = thread() / across;
  const int64_t column = (static_cast<int64_t>(block().x) * across + thread() % across) * N;
  const int64_t end = min(rows, (block().y + int64_t{1}) * chunk);
  float sum[N] = {};
  if (column < columns)
    for (int64_t r = block().y * chunk + mine; r < end; r += down) {
      const Pack<T, N> v = load_pack<N>(x + r * columns + column);
      for (int j = 0; j < N; ++j) sum[j] += float(v[j]);
    }
  for (int j = 0; j < N; ++j) sums[j * kSumThreads + thread()] = sum[j];
  for (int half = down / 2; half > 0; half /= 2) {
    sync_block();
    if (mine < half)
      for (int j = 0; j < N; ++j) {
        const float other = sums[j * kSumThreads + thread() + half * across];
        sums[j * kSumThreads + thread()] += other;
      }
  }
  if (mine == 0 && column < columns)
    for (int j = 0; j < N; ++j) partial[block().y * columns + column + j] = sums[j * kSumThreads + thread()];
}

/// y[j] (+)= sum over the chunks, in order.
KERNEL void column_total_kernel(const float* partial, float* y, int64_t columns, int64_t chunks, bool accumulate) {
  for (int64_t j = grid_thread(); j < columns; j += grid_threads()) {
    double sum = accumulate ? y[j] : 0;
    for (int64_t i = 0; i < chunks; ++i) sum += partial[i * columns + j];
    y[j] = static_cast<float>(sum);
  }
}

template <int N, class T>
void column_sum_as(Context& context, const T* x, float* y, int64_t rows, int64_t columns, bool accumulate) {
  const int64_t packs = ceil_div(columns, N);
  int across = 1;
  while (across < kWarp && across < packs) across *= 2;
  // Chunks of 16 rows to a thread, but at most 512 of them: the second kernel reads one partial sum after the other.
  constexpr int64_t kMaxChunks = 512;
  const int64_t chunk = max(ceil_div(rows, kMaxChunks), int64_t{16} * (kSumThreads / across));
  const int64_t chunks = ceil_div(rows, chunk);
  float* partial = context.scratch<float>(chunks * columns);
  launch(context, {.name = "column_sum", .grid = {ceil_div(packs, across), chunks}, .threads = kSumThreads},
         column_partial_kernel<N, T>, x, partial, rows, columns, chunk, across);
  launch(context, {.name = "column_sum total", .grid = grid_for(context, columns)}, column_total_kernel, partial, y,
         columns, chunks, accumulate);
}

// ---- gather ---------------------------------------------------------------------------------------------------------

/// `lanes` threads (a power of two up to the block) take one row of y. Bytes: reads index and the rows, writes y.
template <int N, class T>
KERNEL void gather_kernel(const T* x, const int32_t* index, T* y, int64_t count, int32_t rows, int64_t row_size,
                          int lanes, Failure* failure) {
  const int rows_per_block = block_threads() / lanes;
  for (int64_t i = static_cast<int64_t>(block().x) * rows_per_block + thread() / lanes; i < count;
       i += static_cast<int64_t>(grid().x) * rows_per_block) {
    const int32_t from = index[i];
    if (from < 0 || from >= rows) {
      if (thread() % lanes == 0) report(failure, Failure::gather_index, i, from, rows);
      continue;
    }
    for (int64_t j = thread() % lanes * int64_t{N}; j < row_size; j += int64_t{lanes} * N)
      store_pack(y + i * row_size + j, load_pack<N>(x + from * row_size + j));
  }
}

template <int N, class T>
void gather_as(Context& context, const Backend::Gather& args, int64_t row_size) {
  constexpr int kThreads = 256;
  const int64_t count = args.index.size(), packs = row_size / N;
  int lanes = 1;
  while (lanes < kThreads && lanes < packs) lanes *= 2;
  launch(context, {.name = "gather", .grid = grid_for(context, count * lanes, kThreads), .threads = kThreads},
         gather_kernel<N, T>, static_cast<const T*>(args.x.data), args.index.as<int32_t>(),
         static_cast<T*>(args.y.data), count, static_cast<int32_t>(args.x.shape[0]), row_size, lanes,
         context.failure());
}

}  // namespace

void fill(Context& context, const Backend::Fill& args) {
  with_float_type(args.y.dtype, [&]<class T>(T) {
    T* y = args.y.as<T>();
    map<kPack<T>>(context, "fill", FillOp<T>{y, T(args.value)}, args.y.size(), aligned(y));
  });
}

void copy(Context& context, const Backend::Copy& args) {
  CHECK(args.x.dtype == args.y.dtype && args.x.size() == args.y.size(), "copy: {} {} into {} {}", name_of(args.x.dtype),
        args.x.shape.text(), name_of(args.y.dtype), args.y.shape.text());
  with_size(size_of(args.x.dtype), [&]<class T>(T) {
    const T* x = static_cast<const T*>(args.x.data);
    T* y = static_cast<T*>(args.y.data);
    map<kPack<T>>(context, "copy", CopyOp<T>{x, y}, args.x.size(), aligned(x) && aligned(y));
  });
}

void axpy(Context& context, const Backend::Axpy& args) {
  check_same("axpy", args.x, args.y);
  CHECK(!args.scale || args.scale.shape.size() == 1, "axpy: scale is {}, must be [1]", args.scale.shape.text());
  const float* scale = args.scale ? args.scale.as<float>() : nullptr;
  with_float_type(args.x.dtype, [&]<class X>(X) {
    with_float_type(args.y.dtype, [&]<class Y>(Y) {
      constexpr int N = kPack<X> < kPack<Y> ? kPack<X> : kPack<Y>;
      const X* x = args.x.as<X>();
      Y* y = args.y.as<Y>();
      map<N>(context, "axpy", AxpyOp<X, Y>{x, y, args.alpha, scale, args.write == Write::accumulate}, args.x.size(),
             aligned(x) && aligned(y));
    });
  });
}

void relu(Context& context, const Backend::Relu& args) {
  check_same("relu", args.x, args.y);
  with_float_type(args.x.dtype, [&]<class T>(T) {
    const T* x = args.x.as<T>();
    T* y = args.y.as<T>();
    map<kPack<T>>(context, "relu", ReluOp<T>{x, y}, args.x.size(), aligned(x) && aligned(y));
  });
}

void relu_grad(Context& context, const Backend::ReluGrad& args) {
  check_same("relu_grad", args.dy, args.y);
  check_same("relu_grad", args.dy, args.dx);
  with_float_type(args.dy.dtype, [&]<class T>(T) {
    const T *dy = args.dy.as<T>(), *y = args.y.as<T>();
    T* dx = args.dx.as<T>();
    map<kPack<T>>(context, "relu_grad", ReluGradOp<T>{dy, y, dx, args.write == Write::accumulate}, args.dy.size(),
                  aligned(dy) && aligned(y) && aligned(dx));
  });
}

void column_sum(Context& context, const Backend::ColumnSum& args) {
  const Shape& shape = args.x.shape;
  CHECK(shape.rank() >= 1, "column_sum: x needs a last dimension");
  const int64_t columns = shape[shape.rank() - 1];
  CHECK(args.y.shape == Shape{columns}, "column_sum: x {} gives [{}], not {}", shape.text(), columns,
        args.y.shape.text());
  if (columns == 0) return;
  float* y = args.y.as<float>();
  const int64_t rows = shape.size() / columns;
  const bool accumulate = args.write == Write::accumulate;
  with_float_type(args.x.dtype, [&]<class T>(T) {
    constexpr int N = 8 / sizeof(T);  // 8 bytes: two registers of sums in f32, four in 16 bits
    const T* x = args.x.as<T>();
    if (columns % N == 0 && aligned(x, 8))
      column_sum_as<N>(context, x, y, rows, columns, accumulate);
    else
      column_sum_as<1>(context, x, y, rows, columns, accumulate);
  });
}

void gather(Context& context, const Backend::Gather& args) {
  CHECK(args.x.shape.rank() >= 1 && args.index.shape.rank() == 1, "gather: x {} by index {}", args.x.shape.text(),
        args.index.shape.text());
  const int64_t count = args.index.shape[0], row_size = args.x.shape.row_size();
  CHECK(args.y.shape == args.x.shape.with_rows(count) && args.y.dtype == args.x.dtype,
        "gather: {} rows of x {} {} do not give y {} {}", count, name_of(args.x.dtype), args.x.shape.text(),
        name_of(args.y.dtype), args.y.shape.text());
  CHECK(args.x.shape[0] <= std::numeric_limits<int32_t>::max(), "gather: {} rows, but an index is i32",
        args.x.shape[0]);
  with_size(size_of(args.x.dtype), [&]<class T>(T) {
    if (row_size % kPack<T> == 0 && aligned(args.x.data) && aligned(args.y.data))
      gather_as<kPack<T>, T>(context, args, row_size);
    else
      gather_as<1, T>(context, args, row_size);
  });
}

}  // namespace csml::cuda
