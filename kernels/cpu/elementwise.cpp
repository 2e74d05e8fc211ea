#include <cstring>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/scratch.h"

namespace csml::cpu {

namespace {

constexpr int64_t kGrain = 32768;  // elements per thread below which starting a team costs more than it saves

void check_same(const char* op, const ConstView& x, const ConstView& y) {
  CHECK(x.shape == y.shape, "{}: shapes {} and {} differ", op, x.shape.text(), y.shape.text());
}

}  // namespace

void fill(const Backend::Fill& args) {
  float* y = args.y.as<float>();
  const float value = args.value;
  parallel_for(args.y.size(), kGrain, [=](int64_t begin, int64_t end) { std::fill(y + begin, y + end, value); });
}

void copy(const Backend::Copy& args) {
  CHECK(args.x.dtype == args.y.dtype && args.x.size() == args.y.size(), "copy: {} {} into {} {}", name_of(args.x.dtype),
        args.x.shape.text(), name_of(args.y.dtype), args.y.shape.text());
  const char* x = static_cast<const char*>(args.x.data);
  char* y = static_cast<char*>(args.y.data);
  parallel_for(static_cast<int64_t>(args.x.bytes()), 4 * kGrain,
               [=](int64_t begin, int64_t end) { std::memcpy(y + begin, x + begin, end - begin); });
}

void axpy(const Backend::Axpy& args) {
  check_same("axpy", args.x, args.y);
  CHECK(!args.scale || args.scale.shape.size() == 1, "axpy: scale is {}, must be [1]", args.scale.shape.text());
  const float* __restrict x = args.x.as<float>();
  float* __restrict y = args.y.as<float>();
  const float alpha = args.alpha * (args.scale ? *args.scale.as<float>() : 1.f);
  const bool accumulate = args.write == Write::accumulate;
  parallel_for(args.x.size(), kGrain, [=](int64_t begin, int64_t end) {
    if (accumulate)
      for (int64_t i = begin; i < end; ++i) y[i] += alpha * x[i];
    else
      for (int64_t i = begin; i < end; ++i) y[i] = alpha * x[i];
  });
}

void relu(const Backend::Relu& args) {
  check_same("relu", args.x, args.y);
  const float* x = args.x.as<float>();
  float* y = args.y.as<float>();
  parallel_for(args.x.size(), kGrain, [=](int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) y[i] = x[i] < 0.f ? 0.f : x[i];  // NaN stays NaN
  });
}

void relu_grad(const Backend::ReluGrad& args) {
  check_same("relu_grad", args.dy, args.y);
  check_same("relu_grad", args.dy, args.dx);
  const float *dy = args.dy.as<float>(), *y = args.y.as<float>();
  float* __restrict dx = args.dx.as<float>();
  const bool accumulate = args.write == Write::accumulate;
  parallel_for(args.dy.size(), kGrain, [=](int64_t begin, int64_t end) {
    if (accumulate)
      for (int64_t i = begin; i < end; ++i) dx[i] += y[i] > 0.f ? dy[i] : 0.f;
    else
      for (int64_t i = begin; i < end; ++i) dx[i] = y[i] > 0.f ? dy[i] : 0.f;
  });
}

void column_sum(const Backend::ColumnSum& args) {
  const Shape& shape = args.x.shape;
  CHECK(shape.rank() >= 1, "column_sum: x needs a last dimension");
  const int64_t columns = shape[shape.rank() - 1];
  CHECK(args.y.shape == Shape{columns}, "column_sum: x {} gives [{}], not {}", shape.text(), columns,
        args.y.shape.text());
  if (columns == 0) return;
  const float* x = args.x.as<float>();
  float* y = args.y.as<float>();
  const int64_t rows = args.x.size() / columns;

  // The chunks do not depend on the number of threads, so neither does the result.
  const int64_t chunk = std::max<int64_t>(32, kGrain / columns);
  const int64_t chunks = (rows + chunk - 1) / chunk;
  thread_local Scratch scratch;
  float* partial = scratch.get<float>(chunks * columns);
  parallel_for(chunks, 1, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* __restrict sum = partial + i * columns;
      std::fill(sum, sum + columns, 0.f);
      for (int64_t r = i * chunk; r < std::min(rows, (i + 1) * chunk); ++r)
        for (int64_t c = 0; c < columns; ++c) sum[c] += x[r * columns + c];
    }
  });
  for (int64_t c = 0; c < columns; ++c) {
    double sum = 0;
    for (int64_t i = 0; i < chunks; ++i) sum += partial[i * columns + c];
    y[c] = static_cast<float>(args.write == Write::accumulate ? y[c] + sum : sum);
  }
}

void gather(const Backend::Gather& args) {
  CHECK(args.x.shape.rank() >= 1 && args.index.shape.rank() == 1, "gather: x {} by index {}", args.x.shape.text(),
        args.index.shape.text());
  const int64_t rows = args.x.shape[0], count = args.index.shape[0];
  CHECK(args.y.shape == args.x.shape.with_rows(count) && args.y.dtype == args.x.dtype,
        "gather: {} rows of x {} {} do not give y {} {}", count, name_of(args.x.dtype), args.x.shape.text(),
        name_of(args.y.dtype), args.y.shape.text());
  const int32_t* index = args.index.as<int32_t>();
  for (int64_t i = 0; i < count; ++i)
    CHECK(index[i] >= 0 && index[i] < rows, "gather: index[{}] = {} is outside the {} rows of x", i, index[i], rows);
  const size_t bytes = static_cast<size_t>(args.x.shape.row_size()) * size_of(args.x.dtype);
  if (bytes == 0) return;
  const char* x = static_cast<const char*>(args.x.data);
  char* y = static_cast<char*>(args.y.data);
  parallel_for(count, std::max<int64_t>(1, 4 * kGrain / static_cast<int64_t>(bytes)), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) std::memcpy(y + i * bytes, x + static_cast<size_t>(index[i]) * bytes, bytes);
  });
}

}  // namespace csml::cpu
