// Gradient of batch norm. Arrays of x's shape are f32, bf16 or f16, all of one type; statistics and parameters f32.
// Passes as in batch_norm.cu. With n elements of b bytes the floor is bytes / bandwidth of
//   without residual (ReLU's mask, if any, found again from x)   5 n b: dy and x twice, dx
//   residual block (dy, dy2, x, y -> dresidual; dresidual, x -> dx)   8 n b
// and 3 to 8 FLOPs an element in each pass.
#include "kernels/cuda/batch_norm.cuh"
#include "kernels/cuda/map.cuh"

namespace csml::cuda {

using namespace norm;

namespace {

/// Rows a thread has in flight, of up to four arrays: more would not fit the registers.
template <int N>
constexpr int kGradRows = N > 4 ? 2 : 4;

struct ChunkSums {
  DEVICE Totals operator()(float a, float b, int64_t) const { return {a, b}; }
};

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

Mask mask_of(bool relu, bool has_residual) { return !relu ? Mask::none : has_residual ? Mask::from_y : Mask::from_x; }

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

/// dgamma, dbeta and sums [2, C] = sum d, sum d * (x - mean) of the rows that are here; one group.
KERNEL void merge_gradient_sums_kernel(Layout v, const float* partial, const float* rstd, ParameterGradients to,
                                       float* sums) {
  const int64_t c = merge_column();
  const Totals t = merge_chunks(v, partial, 0, ChunkSums{});
  if (thread() >= kMergeColumns || c >= v.channels) return;
  sums[c] = static_cast<float>(t.a);
  sums[v.channels + c] = static_cast<float>(t.b);
  const double r = rstd[c];
  if (to.dgamma) to.dgamma[c] = static_cast<float>(t.b * r + (to.add_gamma ? to.dgamma[c] : 0.f));
  if (to.dbeta) to.dbeta[c] = static_cast<float>(t.a + (to.add_beta ? to.dbeta[c] : 0.f));
}

/// Constants [2, C] = a, b of input_gradient_kernel from the sums of P parts, `rows` rows together.
struct PartsToConstants {
  const float* parts;  // [P, 2, C]
  int64_t count, channels;
  double rows;
  const float *rstd, *gamma;  // gamma may be null
  float* constants;

  template <int N>
  DEVICE void apply(int64_t c) const {
    double sum = 0, product = 0;
    for (int64_t p = 0; p < count; ++p) {
      sum += double(parts[p * 2 * channels + c]);
      product += double(parts[(p * 2 + 1) * channels + c]);
    }
    const double r = rstd[c], scale = (gamma ? gamma[c] : 1.f) * r;
    constants[c] = static_cast<float>(-scale * r * r * product / rows);
    constants[channels + c] = static_cast<float>(-scale * sum / rows);
  }
};

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

}  // namespace

void batch_norm_grad(Context& context, const Backend::BatchNormGrad& args) {
  constexpr const char* kOp = "batch_norm_grad";
  const Shape& shape = args.x.shape;
  const DType type = args.x.dtype;
  const int64_t rows = rows_of(kOp, shape, args.groups), channels = channels_of(shape);
  const Shape per_channel{channels}, per_group{args.groups, channels};
  const Mask mask = mask_of(args.relu, args.has_residual);
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

// ---- one group on several processes, in parts -----------------------------------------------------------------------

namespace {

/// The inputs that both halves have in common.
template <class Args>
void check_gradient(const char* op, const Args& args, Mask mask) {
  const Shape& shape = args.x.shape;
  const DType type = args.x.dtype;
  CHECK(rows_of(op, shape, 1) > 0 && channels_of(shape) > 0, "{}: x {} is empty", op, shape.text());
  const Shape per_channel{channels_of(shape)}, row{1, channels_of(shape)};
  check_like(op, "dy", args.dy, shape, type, true);
  check_like(op, "dy2", args.dy2, shape, type, false);
  check_like(op, "x", args.x, shape, type, true);
  check_like(op, "y", args.y, shape, type, mask == Mask::from_y);
  check_like(op, "gamma", args.gamma, per_channel, DType::f32, false);
  check_like(op, "beta", args.beta, per_channel, DType::f32, false);
  check_like(op, "mean", args.mean, row, DType::f32, true);
  check_like(op, "rstd", args.rstd, row, DType::f32, true);
}

template <class T, class Args>
Incoming<T> incoming(const Args& args, Mask mask) {
  return {.dy = args.dy.template as<T>(),
          .dy2 = pointer_or_null<T>(args.dy2),
          .x = args.x.template as<T>(),
          .y = pointer_or_null<T>(args.y),
          .mask = mask,
          .mean = args.mean.template as<float>(),
          .rstd = args.rstd.template as<float>(),
          .gamma = args.gamma.template as<float>(),
          .beta = args.beta.template as<float>()};
}

}  // namespace

void batch_norm_grad_sums(Context& context, const Backend::BatchNormGradSums& args) {
  constexpr const char* kOp = "batch_norm_grad_sums";
  const Mask mask = mask_of(args.relu, args.has_residual);
  check_gradient(kOp, args, mask);
  const int64_t rows = rows_of(kOp, args.x.shape, 1), channels = channels_of(args.x.shape);
  check_like(kOp, "sums", args.sums, {2, channels}, DType::f32, true);
  check_like(kOp, "dresidual", args.dresidual, args.x.shape, args.x.dtype, false);
  check_like(kOp, "dgamma", args.dgamma, {channels}, DType::f32, false);
  check_like(kOp, "dbeta", args.dbeta, {channels}, DType::f32, false);
  const std::initializer_list<const void*> arrays = {args.dy.data, args.dy2.data, args.x.data, args.y.data,
                                                     args.dresidual.data};
  with_width(args.x.dtype, channels, arrays, [&]<class T, int N>(T, Width<N>) {
    const Layout v = layout_of<N>(1, rows, channels);
    float* partial = context.scratch<float>(v.partials());
    launch(context, {.name = "batch_norm_grad_sums reduce", .grid = grid_of<N>(v), .threads = kThreads},
           reduce_gradients_kernel<N, T>, v, incoming<T>(args, mask), pointer_or_null<T>(args.dresidual),
           args.dresidual_write == Write::accumulate, partial);
    const ParameterGradients to{.dgamma = args.dgamma.as<float>(),
                                .dbeta = args.dbeta.as<float>(),
                                .add_gamma = args.dgamma_write == Write::accumulate,
                                .add_beta = args.dbeta_write == Write::accumulate};
    launch(context, {.name = "batch_norm_grad_sums merge", .grid = merge_grid(v), .threads = kThreads},
           merge_gradient_sums_kernel, v, partial, args.rstd.as<float>(), to, args.sums.as<float>());
  });
}

void batch_norm_grad_apply(Context& context, const Backend::BatchNormGradApply& args) {
  constexpr const char* kOp = "batch_norm_grad_apply";
  const Mask mask = mask_of(args.relu, args.has_residual);
  check_gradient(kOp, args, mask);
  const int64_t rows = rows_of(kOp, args.x.shape, 1), channels = channels_of(args.x.shape);
  const Shape& parts = args.parts.shape;
  CHECK(parts.rank() == 3 && parts[0] > 0, "{}: parts must be [P, 2, C], got {}", kOp, parts.text());
  check_like(kOp, "parts", args.parts, {parts[0], 2, channels}, DType::f32, true);
  check_like(kOp, "dx", args.dx, args.x.shape, args.x.dtype, true);
  const std::initializer_list<const void*> arrays = {args.dy.data, args.dy2.data, args.x.data, args.y.data,
                                                     args.dx.data};
  with_width(args.x.dtype, channels, arrays, [&]<class T, int N>(T, Width<N>) {
    const Layout v = layout_of<N>(1, rows, channels);
    float* constants = context.scratch<float>(2 * channels);
    map<1>(context, "batch_norm_grad_apply constants",
           PartsToConstants{.parts = args.parts.as<float>(),
                            .count = parts[0],
                            .channels = channels,
                            .rows = static_cast<double>(rows * parts[0]),
                            .rstd = args.rstd.as<float>(),
                            .gamma = args.gamma.as<float>(),
                            .constants = constants},
           channels, false);
    launch(context, {.name = kOp, .grid = grid_of<N>(v), .threads = kThreads}, input_gradient_kernel<N, T>, v,
           incoming<T>(args, mask), constants, args.dx.as<T>(), args.write == Write::accumulate);
  });
}

}  // namespace csml::cuda
