// Batch norm over groups, in training and in inference. x, y and residual are f32, bf16 or f16, all of one type;
// statistics and parameters f32. Bound by memory: a pass that reduces, a few microseconds that merge partial results, a
// pass that applies. With n elements of b bytes the floor is bytes / bandwidth of
//   training   3 n b, with residual 4 n b: x twice, y, residual
//   inference  2 n b, with residual 3 n b
// and 4 FLOPs an element in each pass, far below what the arithmetic units can do in that time. The second pass goes
// through the chunks backwards: what the first read last is still in the second-level cache.
#include "kernels/cuda/batch_norm.cuh"
#include "kernels/cuda/map.cuh"

namespace csml::cuda {

using namespace norm;

namespace {

constexpr int kRows = 4;  // a thread has in flight in the pass that applies

/// partial[group, chunk] = mean[C], sum of squared deviations from it [C]. Runs of kRun rows are reduced in registers
/// in two passes, runs and threads merged (Chan, Golub & LeVeque 1979), so nothing is lost where |mean| is far above
/// the deviation. Bytes: reads x once. FLOPs: 4 an element.
template <int N, class T>
KERNEL_BOUNDS(kThreads, 2)
void statistics_kernel(Layout v, const T* x, float* partial) {
  SHARED(float, counts, kThreads);
  SHARED(float, means, kThreads* N);
  SHARED(float, squares, kThreads* N);
  const Place p = place_of<N>(v, false);
  float count = 0, mean[N] = {}, square[N] = {};
  for (int64_t row = p.row; row < p.end; row += int64_t{kRun} * p.down) {
    Pack<T, N> in[kRun];
    load_rows(in, x, v, p, row);
    const int n = static_cast<int>(min(int64_t{kRun}, ceil_div(p.end - row, p.down)));
    const float inverse = 1.f / static_cast<float>(n), share = static_cast<float>(n) / (count + static_cast<float>(n));
    for (int j = 0; j < N; ++j) {
      float sum = 0, deviations = 0;
      for (int r = 0; r < kRun; ++r) sum += float(in[r][j]);
      const float run_mean = sum * inverse;
      for (int r = 0; r < kRun; ++r) {
        const float d = r < n ? float(in[r][j]) - run_mean : 0.f;
        deviations += d * d;
      }
      const float delta = run_mean - mean[j];
      mean[j] += delta * share;
      square[j] += deviations + delta * delta * count * share;
    }
    count += static_cast<float>(n);
  }
  for (int j = 0; j < N; ++j) {
    means[j * kThreads + thread()] = mean[j];
    squares[j * kThreads + thread()] = square[j];
  }
  counts[thread()] = count;
  for (int half = p.down / 2; half > 0; half /= 2) {
    sync_block();
    if (p.slot >= half) continue;
    const int other = thread() + half * v.across;
    const float n = counts[other], share = n > 0 ? n / (count + n) : 0.f;
    for (int j = 0; j < N; ++j) {
      const float m = means[j * kThreads + other], s = squares[j * kThreads + other], delta = m - mean[j];
      mean[j] += delta * share;
      square[j] += s + delta * delta * count * share;
      means[j * kThreads + thread()] = mean[j];
      squares[j * kThreads + thread()] = square[j];
    }
    count += n;
    counts[thread()] = count;
  }
  if (p.slot == 0 && p.column < v.channels)
    for (int j = 0; j < N; ++j) {
      float* to = partial + (p.group * v.chunks + p.chunk) * 2 * v.channels + p.column + j;
      to[0] = mean[j];
      to[v.channels] = square[j];
    }
}

struct ChunkMoments {
  DEVICE Totals operator()(float mean, float squares, int64_t rows) const {
    const double n = static_cast<double>(rows), m = mean;
    return {n * m, squares + n * m * m};
  }
};
/// mean, rstd [groups, C]; batch_mean, batch_var [C] may be null. Bytes: reads 8 for each chunk and column.
KERNEL void merge_statistics_kernel(Layout v, const float* partial, float eps, float* mean, float* rstd,
                                    float* batch_mean, float* batch_var) {
  const int64_t c = merge_column();
  const bool writes = thread() < kMergeColumns && c < v.channels;
  const double n = static_cast<double>(v.rows);
  double mean_of_groups = 0, var_of_groups = 0;
  for (int64_t g = 0; g < v.groups; ++g) {
    const Totals t = merge_chunks(v, partial, g, ChunkMoments{});
    const double average = t.a / n, squares = max(0.0, t.b - t.a * average);
    mean_of_groups += average;
    var_of_groups += squares / (n - 1);
    if (!writes) continue;
    mean[g * v.channels + c] = static_cast<float>(average);
    rstd[g * v.channels + c] = static_cast<float>(1.0 / std::sqrt(squares / n + static_cast<double>(eps)));
  }
  if (!writes) return;
  if (batch_mean) batch_mean[c] = static_cast<float>(mean_of_groups / static_cast<double>(v.groups));
  if (batch_var) batch_var[c] = static_cast<float>(var_of_groups / static_cast<double>(v.groups));
}

/// moments [2, C] = mean, sum of squared deviations; one group. Bytes: reads 8 for each chunk and column.
KERNEL void merge_moments_kernel(Layout v, const float* partial, float* moments) {
  const int64_t c = merge_column();
  const Totals t = merge_chunks(v, partial, 0, ChunkMoments{});
  if (thread() >= kMergeColumns || c >= v.channels) return;
  const double average = t.a / static_cast<double>(v.rows);
  moments[c] = static_cast<float>(average);
  moments[v.channels + c] = static_cast<float>(max(0.0, t.b - t.a * average));
}

/// Statistics of one column from the moments of P parts of n rows each.
struct MergeParts {
  const float* parts;  // [P, 2, C]
  int64_t count, channels;
  double rows;  // of each part
  float eps;
  float *mean, *rstd, *batch_mean, *batch_var;  // the last two may be null

  template <int N>
  DEVICE void apply(int64_t c) const {
    double n = 0, average = 0, squares = 0;
    for (int64_t p = 0; p < count; ++p) {
      const float* part = parts + p * 2 * channels + c;
      const double delta = double(part[0]) - average, total = n + rows;
      average += delta * rows / total;
      squares += double(part[channels]) + delta * delta * n * rows / total;
      n = total;
    }
    mean[c] = static_cast<float>(average);
    rstd[c] = static_cast<float>(1.0 / std::sqrt(squares / n + static_cast<double>(eps)));
    if (batch_mean) batch_mean[c] = static_cast<float>(average);
    if (batch_var) batch_var[c] = static_cast<float>(squares / (n - 1));
  }
};

template <class T>
struct Affine {
  const T *x, *residual;  // residual may be null
  T* y;                   // may be x
  const float *mean, *rstd, *gamma, *beta;
  float eps;  // below 0: rstd is given; else rstd holds variances
  bool relu;
};

/// y = act((x - mean) * scale + beta + residual). Bytes: reads x and residual, writes y. FLOPs: 4 an element.
template <int N, class T>
KERNEL_BOUNDS(kThreads, 2)
void affine_kernel(Layout v, Affine<T> a) {
  const Place p = place_of<N>(v, true);
  const Coefficients<N> k = coefficients_of<N>(v, p, a.mean, a.rstd, a.gamma, a.beta, a.eps);
  for (int64_t row = p.row; row < p.end; row += int64_t{kRows} * p.down) {
    Pack<T, N> in[kRows], residual[kRows];
    load_rows(in, a.x, v, p, row);
    load_rows(residual, a.residual, v, p, row);
    for (int r = 0; r < kRows; ++r) {
      const int64_t at = row + int64_t{r} * p.down;
      if (at >= p.end) break;
      for (int j = 0; j < N; ++j) {
        const float y = affine(float(in[r][j]), k.mean[j], k.scale[j], k.beta[j]) + float(residual[r][j]);
        in[r][j] = T(a.relu && y < 0.f ? 0.f : y);  // NaN stays NaN
      }
      store_pack(a.y + at * v.channels + p.column, in[r]);
    }
  }
}

template <int N, class T>
void apply_affine(Context& context, const char* name, const Layout& v, const Affine<T>& affine) {
  launch(context, {.name = name, .grid = grid_of<N>(v), .threads = kThreads}, affine_kernel<N, T>, v, affine);
}

}  // namespace

void batch_norm(Context& context, const Backend::BatchNorm& args) {
  constexpr const char* kOp = "batch_norm";
  const Shape& shape = args.x.shape;
  const int64_t rows = rows_of(kOp, shape, args.groups), channels = channels_of(shape);
  const Shape per_channel{channels}, per_group{args.groups, channels};
  check_like(kOp, "x", args.x, shape, args.x.dtype, true);
  check_like(kOp, "y", args.y, shape, args.x.dtype, true);
  check_like(kOp, "gamma", args.gamma, per_channel, DType::f32, false);
  check_like(kOp, "beta", args.beta, per_channel, DType::f32, false);
  check_like(kOp, "residual", args.residual, shape, args.x.dtype, false);
  check_like(kOp, "mean", args.mean, per_group, DType::f32, true);
  check_like(kOp, "rstd", args.rstd, per_group, DType::f32, true);
  check_like(kOp, "batch_mean", args.batch_mean, per_channel, DType::f32, false);
  check_like(kOp, "batch_var", args.batch_var, per_channel, DType::f32, false);
  CHECK(rows > 1 && channels > 0, "{}: a group of x {} has {} values per channel, needs 2 or more (fewer groups)", kOp,
        shape.text(), rows);
  with_width(args.x.dtype, channels, {args.x.data, args.residual.data, args.y.data}, [&]<class T, int N>(T, Width<N>) {
    const Layout v = layout_of<N>(args.groups, rows, channels);
    float* partial = context.scratch<float>(v.partials());
    float *mean = args.mean.as<float>(), *rstd = args.rstd.as<float>();
    launch(context, {.name = "batch_norm statistics", .grid = grid_of<N>(v), .threads = kThreads},
           statistics_kernel<N, T>, v, args.x.as<T>(), partial);
    launch(context, {.name = "batch_norm merge", .grid = merge_grid(v), .threads = kThreads}, merge_statistics_kernel,
           v, partial, args.eps, mean, rstd, args.batch_mean.as<float>(), args.batch_var.as<float>());
    apply_affine<N, T>(context, "batch_norm apply", v,
                       {.x = args.x.as<T>(),
                        .residual = pointer_or_null<T>(args.residual),
                        .y = args.y.as<T>(),
                        .mean = mean,
                        .rstd = rstd,
                        .gamma = args.gamma.as<float>(),
                        .beta = args.beta.as<float>(),
                        .eps = -1,
                        .relu = args.relu});
  });
}

void batch_norm_moments(Context& context, const Backend::BatchNormMoments& args) {
  constexpr const char* kOp = "batch_norm_moments";
  const Shape& shape = args.x.shape;
  const int64_t rows = rows_of(kOp, shape, 1), channels = channels_of(shape);
  check_like(kOp, "x", args.x, shape, args.x.dtype, true);
  check_like(kOp, "moments", args.moments, {2, channels}, DType::f32, true);
  CHECK(rows > 0 && channels > 0, "{}: x {} is empty", kOp, shape.text());
  with_width(args.x.dtype, channels, {args.x.data}, [&]<class T, int N>(T, Width<N>) {
    const Layout v = layout_of<N>(1, rows, channels);
    float* partial = context.scratch<float>(v.partials());
    launch(context, {.name = "batch_norm_moments statistics", .grid = grid_of<N>(v), .threads = kThreads},
           statistics_kernel<N, T>, v, args.x.as<T>(), partial);
    launch(context, {.name = "batch_norm_moments merge", .grid = merge_grid(v), .threads = kThreads},
           merge_moments_kernel, v, partial, args.moments.as<float>());
  });
}

void batch_norm_merge(Context& context, const Backend::BatchNormMerge& args) {
  constexpr const char* kOp = "batch_norm_merge";
  const Shape& shape = args.parts.shape;
  CHECK(shape.rank() == 3 && shape[0] > 0 && shape[1] == 2, "{}: parts must be [P, 2, C], got {}", kOp, shape.text());
  const Shape row{1, shape[2]}, per_channel{shape[2]};
  check_like(kOp, "parts", args.parts, shape, DType::f32, true);
  check_like(kOp, "mean", args.mean, row, DType::f32, true);
  check_like(kOp, "rstd", args.rstd, row, DType::f32, true);
  check_like(kOp, "batch_mean", args.batch_mean, per_channel, DType::f32, false);
  check_like(kOp, "batch_var", args.batch_var, per_channel, DType::f32, false);
  CHECK(args.rows * shape[0] > 1, "{}: {} parts of {} rows, needs 2 rows or more", kOp, shape[0], args.rows);
  map<1>(context, kOp,
         MergeParts{.parts = args.parts.as<float>(),
                    .count = shape[0],
                    .channels = shape[2],
                    .rows = static_cast<double>(args.rows),
                    .eps = args.eps,
                    .mean = args.mean.as<float>(),
                    .rstd = args.rstd.as<float>(),
                    .batch_mean = args.batch_mean.as<float>(),
                    .batch_var = args.batch_var.as<float>()},
         shape[2], false);
}

void batch_norm_apply(Context& context, const Backend::BatchNormApply& args) {
  constexpr const char* kOp = "batch_norm_apply";
  const Shape& shape = args.x.shape;
  const int64_t rows = rows_of(kOp, shape, 1), channels = channels_of(shape);
  check_like(kOp, "x", args.x, shape, args.x.dtype, true);
  check_like(kOp, "y", args.y, shape, args.x.dtype, true);
  check_like(kOp, "gamma", args.gamma, {channels}, DType::f32, false);
  check_like(kOp, "beta", args.beta, {channels}, DType::f32, false);
  check_like(kOp, "residual", args.residual, shape, args.x.dtype, false);
  check_like(kOp, "mean", args.mean, {1, channels}, DType::f32, true);
  check_like(kOp, "rstd", args.rstd, {1, channels}, DType::f32, true);
  if (args.x.size() == 0) return;
  with_width(args.x.dtype, channels, {args.x.data, args.residual.data, args.y.data}, [&]<class T, int N>(T, Width<N>) {
    apply_affine<N, T>(context, kOp, layout_of<N>(1, rows, channels),
                       {.x = args.x.as<T>(),
                        .residual = pointer_or_null<T>(args.residual),
                        .y = args.y.as<T>(),
                        .mean = args.mean.as<float>(),
                        .rstd = args.rstd.as<float>(),
                        .gamma = args.gamma.as<float>(),
                        .beta = args.beta.as<float>(),
                        .eps = -1,
                        .relu = args.relu});
  });
}

void batch_norm_inference(Context& context, const Backend::BatchNormInference& args) {
  constexpr const char* kOp = "batch_norm_inference";
  const Shape& shape = args.x.shape;
  const int64_t rows = rows_of(kOp, shape, 1), channels = channels_of(shape);
  const Shape per_channel{channels};
  check_like(kOp, "y", args.y, shape, args.x.dtype, args.x.size() > 0);
  check_like(kOp, "gamma", args.gamma, per_channel, DType::f32, false);
  check_like(kOp, "beta", args.beta, per_channel, DType::f32, false);
  check_like(kOp, "mean", args.mean, per_channel, DType::f32, true);
  check_like(kOp, "var", args.var, per_channel, DType::f32, true);
  check_like(kOp, "residual", args.residual, shape, args.x.dtype, false);
  if (args.x.size() == 0) return;
  with_width(args.x.dtype, channels, {args.x.data, args.residual.data, args.y.data}, [&]<class T, int N>(T, Width<N>) {
    apply_affine<N, T>(context, kOp, layout_of<N>(1, rows, channels),
                       {.x = args.x.as<T>(),
                        .residual = pointer_or_null<T>(args.residual),
                        .y = args.y.as<T>(),
                        .mean = args.mean.as<float>(),
                        .rstd = args.var.as<float>(),
                        .gamma = args.gamma.as<float>(),
                        .beta = args.beta.as<float>(),
                        .eps = args.eps,
                        .relu = args.relu});
  });
}

}  // namespace csml::cuda
