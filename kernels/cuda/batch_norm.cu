// Batch norm over groups, its gradient, and inference. x, y, residual and their gradients are f32, bf16 or f16, all of
// one type; statistics and parameters f32. Both directions are bound by memory: a pass that reduces, a few microseconds
// that merge partial results, a pass that applies. With n elements of b bytes the floor is bytes / bandwidth of
//   forward    n b (3, with residual 4): x twice, y, residual
//   inference  n b (2, with residual 3)
//   backward   without ReLU or with its mask found again from x: n b 5: dy and x twice, dx
//              residual block (dy, dy2, x, y -> dresidual; then dresidual, x -> dx): n b 8
// and 4 to 6 FLOPs an element in each pass, far below what the arithmetic units can do in that time. The second pass
// goes through the chunks backwards: what the first read last is still in the second-level cache.
#include "kernels/cuda/launch.cuh"

namespace csml::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kRun = 8;   // rows a thread has in flight in the pass that reads x alone
constexpr int kRows = 4;  // in the forward pass that applies
template <int N>
constexpr int kGradRows = N > 4 ? 2 : 4;  // backward, with up to four arrays: more would not fit the registers
constexpr int64_t kBlocks = 1024;

/// How x [groups, rows, channels] is cut; by shape alone, so that sums do not depend on the card. A block takes a chunk
/// of a group's rows and `across` packs (a power of two up to 32) of N columns, kThreads / across rows at a time.
struct Layout {
  int64_t groups, rows, channels;
  int64_t chunk, chunks;  // rows of a chunk, chunks of a group
  int across;

  CSML_HD int64_t rows_of(int64_t i) const { return min(chunk, rows - i * chunk); }
  CSML_HD int64_t partials() const { return groups * chunks * 2 * channels; }
};

/// Where a thread works: columns [column, column + N) of rows row, row + down, ... below end, counted over all groups.
struct Place {
  int64_t group, chunk, column, row, end;
  int down, slot;
};

template <int N>
DEVICE Place place_of(const Layout& v, bool backwards) {
  Place p;
  p.group = backwards ? v.groups - 1 - block().z : block().z;
  p.chunk = backwards ? v.chunks - 1 - block().y : block().y;
  p.column = (static_cast<int64_t>(block().x) * v.across + thread() % v.across) * N;
  p.down = kThreads / v.across;
  p.slot = thread() / v.across;
  const int64_t begin = p.group * v.rows + p.chunk * v.chunk;
  p.end = p.column < v.channels ? begin + v.rows_of(p.chunk) : 0;  // columns past the last: no rows
  p.row = begin + p.slot;
  return p;
}

/// The affine part, the same in forward and backward: backward finds its sign again and both must agree exactly.
DEVICE float affine(float x, float mean, float scale, float beta) { return std::fma(x - mean, scale, beta); }

template <int N>
struct Coefficients {
  float mean[N], scale[N], beta[N];
};

/// scale = gamma * rstd. Where eps >= 0, rstd holds variances.
template <int N>
DEVICE Coefficients<N> coefficients_of(const Layout& v, const Place& p, const float* mean, const float* rstd,
                                       const float* gamma, const float* beta, float eps = -1) {
  Coefficients<N> k{};
  if (p.column >= v.channels) return k;
  for (int j = 0; j < N; ++j) {
    const int64_t c = p.column + j, at = p.group * v.channels + c;
    const float r = eps >= 0 ? 1.f / std::sqrt(rstd[at] + eps) : rstd[at];
    k.mean[j] = mean[at];
    k.scale[j] = (gamma ? gamma[c] : 1.f) * r;
    k.beta[j] = beta ? beta[c] : 0.f;
  }
  return k;
}

/// kCount rows of an array, which may be null; zeros past the end. A predicate and no branch: the loads of all arrays
/// are under way before the first value is used.
template <int kCount, int N, class T>
DEVICE void load_rows(Pack<T, N> (&to)[kCount], const T* from, const Layout& v, const Place& p, int64_t row) {
  for (int r = 0; r < kCount; ++r) {
    const int64_t at = row + int64_t{r} * p.down;
    to[r] = from && at < p.end ? load_pack<N>(from + at * v.channels + p.column) : Pack<T, N>{};
  }
}

// ---- forward --------------------------------------------------------------------------------------------------------

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

// Merging of partial results: a block takes 8 columns (one sector of memory) and 32 chunks at a time.
constexpr int kMergeColumns = 8, kMergeSlots = kThreads / kMergeColumns, kMergeWarps = kThreads / kWarp;

DEVICE int64_t merge_column() { return static_cast<int64_t>(block().x) * kMergeColumns + thread() % kMergeColumns; }

struct Totals {
  double a = 0, b = 0;
};

/// Sums of term(partial, partial of the second kind, rows) over the chunks of a group, in a fixed order; for all
/// threads of a column. Contains barriers.
template <class Term>
DEVICE Totals merge_chunks(const Layout& v, const float* partial, int64_t group, Term term) {
  SHARED(double, first, kMergeWarps* kMergeColumns);
  SHARED(double, second, kMergeWarps* kMergeColumns);
  const int64_t column = merge_column();
  Totals mine;
  if (column < v.channels)
    for (int64_t i = thread() / kMergeColumns; i < v.chunks; i += kMergeSlots) {
      const float* p = partial + (group * v.chunks + i) * 2 * v.channels + column;
      const Totals t = term(p[0], p[v.channels], v.rows_of(i));
      mine.a += t.a;
      mine.b += t.b;
    }
  for (int mask = kMergeColumns; mask < kWarp; mask *= 2) {
    mine.a += shuffle_xor(mine.a, mask);
    mine.b += shuffle_xor(mine.b, mask);
  }
  if (lane() < kMergeColumns) {
    first[warp() * kMergeColumns + lane()] = mine.a;
    second[warp() * kMergeColumns + lane()] = mine.b;
  }
  sync_block();
  Totals all;
  for (int i = 0; i < kMergeWarps; ++i) {
    const int at = i * kMergeColumns + thread() % kMergeColumns;
    all.a += double(first[at]);
    all.b += double(second[at]);
  }
  sync_block();
  return all;
}

struct ChunkMoments {
  DEVICE Totals operator()(float mean, float squares, int64_t rows) const {
    const double n = static_cast<double>(rows), m = mean;
    return {n * m, squares + n * m * m};
  }
};
struct ChunkSums {
  DEVICE Totals operator()(float a, float b, int64_t) const { return {a, b}; }
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

// ---- backward -------------------------------------------------------------------------------------------------------

/// Where the ReLU's mask comes from.
enum class Mask { none, from_x, from_y };

template <class T>
struct Incoming {
  const T *dy, *dy2, *x, *y;  // dy2 may be null; y is read where the mask comes from it
  Mask mask;
  const float *mean, *rstd, *gamma, *beta;
};

/// x and d = (dy + dy2) * mask of kGradRows<N> rows; zeros past the end.
template <int N, class T>
DEVICE void load_gradients(Pack<T, N> (&x)[kGradRows<N>], float (&d)[kGradRows<N>][N], const Incoming<T>& in,
                           const Coefficients<N>& k, const Layout& v, const Place& p, int64_t row) {
  Pack<T, N> dy[kGradRows<N>], dy2[kGradRows<N>], y[kGradRows<N>];
  load_rows(x, in.x, v, p, row);
  load_rows(dy, in.dy, v, p, row);
  load_rows(dy2, in.dy2, v, p, row);
  load_rows(y, in.mask == Mask::from_y ? in.y : nullptr, v, p, row);
  for (int r = 0; r < kGradRows<N>; ++r)
    for (int j = 0; j < N; ++j) {
      bool passes = true;
      if (in.mask == Mask::from_x) passes = affine(float(x[r][j]), k.mean[j], k.scale[j], k.beta[j]) > 0.f;
      if (in.mask == Mask::from_y) passes = float(y[r][j]) > 0.f;
      d[r][j] = passes ? float(dy[r][j]) + float(dy2[r][j]) : 0.f;
    }
}

/// partial[group, chunk] = sum d [C], sum d * (x - mean) [C]; dresidual (may be null) (+)= d. Bytes: reads dy, dy2, x
/// and for the mask of a residual block y; writes dresidual (and reads it where it accumulates). FLOPs: 3 to 5 an
/// element.
template <int N, class T>
KERNEL_BOUNDS(kThreads, 2)
void reduce_gradients_kernel(Layout v, Incoming<T> in, T* dresidual, bool accumulate, float* partial) {
  SHARED(float, sums, kThreads* N);
  SHARED(float, products, kThreads* N);
  const Place p = place_of<N>(v, false);
  const Coefficients<N> k = coefficients_of<N>(v, p, in.mean, in.rstd, in.gamma, in.beta);
  float sum[N] = {}, product[N] = {};
  for (int64_t row = p.row; row < p.end; row += int64_t{kGradRows<N>} * p.down) {
    Pack<T, N> x[kGradRows<N>];
    float d[kGradRows<N>][N];
    load_gradients(x, d, in, k, v, p, row);
    for (int j = 0; j < N; ++j) {
      float a = 0, b = 0;
      for (int r = 0; r < kGradRows<N>; ++r) {
        a += d[r][j];
        b += d[r][j] * (float(x[r][j]) - k.mean[j]);
      }
      sum[j] += a;
      product[j] += b;
    }
    if (!dresidual) continue;
    for (int r = 0; r < kGradRows<N>; ++r) {
      const int64_t at = row + int64_t{r} * p.down;
      if (at >= p.end) break;
      T* to = dresidual + at * v.channels + p.column;
      Pack<T, N> out{};
      if (accumulate) out = load_pack<N>(to);
      for (int j = 0; j < N; ++j) out[j] = T(accumulate ? float(out[j]) + d[r][j] : d[r][j]);
      store_pack(to, out);
    }
  }
  for (int j = 0; j < N; ++j) {
    sums[j * kThreads + thread()] = sum[j];
    products[j * kThreads + thread()] = product[j];
  }
  for (int half = p.down / 2; half > 0; half /= 2) {
    sync_block();
    if (p.slot >= half) continue;
    for (int j = 0; j < N; ++j) {
      const int other = j * kThreads + thread() + half * v.across;
      sum[j] += float(sums[other]);
      product[j] += float(products[other]);
      sums[j * kThreads + thread()] = sum[j];
      products[j * kThreads + thread()] = product[j];
    }
  }
  if (p.slot == 0 && p.column < v.channels)
    for (int j = 0; j < N; ++j) {
      float* to = partial + (p.group * v.chunks + p.chunk) * 2 * v.channels + p.column + j;
      to[0] = sum[j];
      to[v.channels] = product[j];
    }
}

struct ParameterGradients {
  float *dgamma, *dbeta;  // may be null
  bool add_gamma, add_beta;
};

/// dgamma, dbeta, and what dx needs of the sums: constants [groups, 2, C] = a, b of input_gradient_kernel.
KERNEL void merge_gradients_kernel(Layout v, const float* partial, const float* rstd, const float* gamma,
                                   ParameterGradients to, float* constants) {
  const int64_t c = merge_column();
  const bool writes = thread() < kMergeColumns && c < v.channels;
  double total_beta = 0, total_gamma = 0;
  for (int64_t g = 0; g < v.groups; ++g) {
    const Totals t = merge_chunks(v, partial, g, ChunkSums{});
    if (!writes) continue;
    const double r = rstd[g * v.channels + c], scale = (gamma ? gamma[c] : 1.f) * r, n = static_cast<double>(v.rows);
    total_beta += t.a;
    total_gamma += t.b * r;
    constants[(2 * g) * v.channels + c] = static_cast<float>(-scale * r * r * t.b / n);
    constants[(2 * g + 1) * v.channels + c] = static_cast<float>(-scale * t.a / n);
  }
  if (!writes) return;
  if (to.dgamma) to.dgamma[c] = static_cast<float>(total_gamma + (to.add_gamma ? to.dgamma[c] : 0.f));
  if (to.dbeta) to.dbeta[c] = static_cast<float>(total_beta + (to.add_beta ? to.dbeta[c] : 0.f));
}

/// dx (+)= scale * d + a * (x - mean) + b. Bytes: reads what d needs and x, writes dx (and reads it where it
/// accumulates). FLOPs: 5 to 8 an element.
template <int N, class T>
KERNEL_BOUNDS(kThreads, 2)
void input_gradient_kernel(Layout v, Incoming<T> in, const float* constants, T* dx, bool accumulate) {
  const Place p = place_of<N>(v, true);
  const Coefficients<N> k = coefficients_of<N>(v, p, in.mean, in.rstd, in.gamma, in.beta);
  float a[N] = {}, b[N] = {};
  if (p.column < v.channels)
    for (int j = 0; j < N; ++j) {
      a[j] = constants[2 * p.group * v.channels + p.column + j];
      b[j] = constants[(2 * p.group + 1) * v.channels + p.column + j];
    }
  for (int64_t row = p.row; row < p.end; row += int64_t{kGradRows<N>} * p.down) {
    Pack<T, N> x[kGradRows<N>];
    float d[kGradRows<N>][N];
    load_gradients(x, d, in, k, v, p, row);
    for (int r = 0; r < kGradRows<N>; ++r) {
      const int64_t at = row + int64_t{r} * p.down;
      if (at >= p.end) break;
      T* to = dx + at * v.channels + p.column;
      Pack<T, N> out{};
      if (accumulate) out = load_pack<N>(to);
      for (int j = 0; j < N; ++j) {
        const float value = k.scale[j] * d[r][j] + (a[j] * (float(x[r][j]) - k.mean[j]) + b[j]);
        out[j] = T(accumulate ? float(out[j]) + value : value);
      }
      store_pack(to, out);
    }
  }
}

// ---- host side ------------------------------------------------------------------------------------------------------

template <int N>
Layout layout_of(int64_t groups, int64_t rows, int64_t channels) {
  const int64_t packs = ceil_div(channels, N);
  Layout v{.groups = groups, .rows = rows, .channels = channels, .chunk = 0, .chunks = 0, .across = 1};
  while (v.across < kWarp && v.across < packs) v.across *= 2;
  const int64_t run = int64_t{kRun} * (kThreads / v.across);  // at least one run for each thread
  const int64_t most = max(int64_t{1}, kBlocks / (ceil_div(packs, v.across) * groups));
  v.chunk = ceil_div(ceil_div(rows, most), run) * run;
  v.chunks = ceil_div(rows, v.chunk);
  return v;
}

template <int N>
Grid grid_of(const Layout& v) {
  return {.x = ceil_div(ceil_div(v.channels, N), v.across), .y = v.chunks, .z = v.groups};
}

Grid merge_grid(const Layout& v) { return {.x = ceil_div(v.channels, kMergeColumns)}; }

void check_like(const char* op, const char* name, const ConstView& v, const Shape& shape, DType type, bool required) {
  CHECK(v || !required, "{}: {} is missing", op, name);
  CHECK(!v || (v.shape == shape && v.dtype == type), "{}: {} is {} {}, must be {} {}", op, name, name_of(v.dtype),
        v.shape.text(), name_of(type), shape.text());
}

/// Rows of a group.
int64_t rows_of(const char* op, const Shape& x, int groups) {
  CHECK(x.rank() >= 2, "{}: x must be [N, ..., C], got {}", op, x.text());
  CHECK(groups >= 1 && x[0] % groups == 0, "{}: {} rows cannot be cut into {} equal groups", op, x[0], groups);
  const int64_t channels = x[x.rank() - 1];
  return channels > 0 ? x.size() / channels / groups : 0;
}

int64_t channels_of(const Shape& x) { return x[x.rank() - 1]; }

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

void batch_norm_grad(Context& context, const Backend::BatchNormGrad& args) {
  constexpr const char* kOp = "batch_norm_grad";
  const Shape& shape = args.x.shape;
  const DType type = args.x.dtype;
  const int64_t rows = rows_of(kOp, shape, args.groups), channels = channels_of(shape);
  const Shape per_channel{channels}, per_group{args.groups, channels};
  const Mask mask = !args.relu ? Mask::none : args.has_residual ? Mask::from_y : Mask::from_x;
  check_like(kOp, "dy", args.dy, shape, type, true);
  check_like(kOp, "dy2", args.dy2, shape, type, false);
  check_like(kOp, "x", args.x, shape, type, true);
  check_like(kOp, "y", args.y, shape, type, mask == Mask::from_y);
  check_like(kOp, "gamma", args.gamma, per_channel, DType::f32, false);
  check_like(kOp, "beta", args.beta, per_channel, DType::f32, false);
  check_like(kOp, "mean", args.mean, per_group, DType::f32, true);
  check_like(kOp, "rstd", args.rstd, per_group, DType::f32, true);
  check_like(kOp, "dx", args.dx, shape, type, false);
  check_like(kOp, "dresidual", args.dresidual, shape, type, false);
  check_like(kOp, "dgamma", args.dgamma, per_channel, DType::f32, false);
  check_like(kOp, "dbeta", args.dbeta, per_channel, DType::f32, false);
  CHECK(rows > 0 && channels > 0, "{}: x {} is empty", kOp, shape.text());
  const std::initializer_list<const void*> arrays = {args.dy.data, args.dy2.data, args.x.data,
                                                     args.y.data,  args.dx.data,  args.dresidual.data};
  with_width(args.x.dtype, channels, arrays, [&]<class T, int N>(T, Width<N>) {
    const Layout v = layout_of<N>(args.groups, rows, channels);
    float* partial = context.scratch<float>(v.partials() + 2 * v.groups * channels);
    float* constants = partial + v.partials();
    T* dresidual = pointer_or_null<T>(args.dresidual);
    const bool accumulate = args.dresidual_write == Write::accumulate;
    Incoming<T> in{.dy = args.dy.as<T>(),
                   .dy2 = pointer_or_null<T>(args.dy2),
                   .x = args.x.as<T>(),
                   .y = pointer_or_null<T>(args.y),
                   .mask = mask,
                   .mean = args.mean.as<float>(),
                   .rstd = args.rstd.as<float>(),
                   .gamma = args.gamma.as<float>(),
                   .beta = args.beta.as<float>()};
    launch(context, {.name = "batch_norm_grad reduce", .grid = grid_of<N>(v), .threads = kThreads},
           reduce_gradients_kernel<N, T>, v, in, dresidual, accumulate, partial);
    const ParameterGradients to{.dgamma = args.dgamma.as<float>(),
                                .dbeta = args.dbeta.as<float>(),
                                .add_gamma = args.dgamma_write == Write::accumulate,
                                .add_beta = args.dbeta_write == Write::accumulate};
    launch(context, {.name = "batch_norm_grad merge", .grid = merge_grid(v), .threads = kThreads},
           merge_gradients_kernel, v, partial, in.rstd, in.gamma, to, constants);
    if (!args.dx) return;
    if (dresidual && !accumulate) {  // it now holds d (in 16 bits: d rounded): one array to read instead of three
      in.dy = dresidual;
      in.dy2 = nullptr;
      in.mask = Mask::none;
    }
    launch(context, {.name = "batch_norm_grad apply", .grid = grid_of<N>(v), .threads = kThreads},
           input_gradient_kernel<N, T>, v, in, constants, args.dx.as<T>(), args.dx_write == Write::accumulate);
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
