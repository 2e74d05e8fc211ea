// The forms of a loss of several positives, from similarities that are given, and the products of rows with rows and
// numbers that come before and after it. Similarities and their gradients are f32; a, b of row_dot and x, y of
// scale_rows are f32, bf16 or f16, of one type in a call.
//
// Negatives [B,K] are too many for shared memory, so they are read twice: once for each anchor's log-sum-exp, in chunks
// that a warp to an anchor joins, and backwards (the second-level cache holds what was read last) for the gradient.
// Logits are in units of log 2, so that 2^x replaces e^x; exponents are differences to the largest, taken in one fma.
#include "kernels/cuda/launch.cuh"

namespace csml::cuda {

namespace {

using Form = Backend::Form;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLog2E = 1.44269504f;
constexpr double kLn2 = 0.69314718055994531;
constexpr int kMost = ConstViews::kMax;
static_assert(kMost <= kWarp, "a lane has one positive");

// ---- rows -----------------------------------------------------------------------------------------------------------

constexpr int kRowThreads = 128, kRowsOfBlock = kRowThreads / kWarp;

/// A warp to a row. Bytes: reads a and b, writes 4 a row: 2 n b, the floor; in a loss (256 x 128) both calls cost a
/// launch. FLOPs: 2 an element.
template <int N, class T>
KERNEL_BOUNDS(kRowThreads, 4)
void row_dot_kernel(const T* a, const T* b, float* y, int64_t rows, int64_t columns) {
  const int64_t row = static_cast<int64_t>(block().x) * kRowsOfBlock + warp();
  if (row >= rows) return;
  float sum = 0;
  for (int64_t i = lane() * N; i < columns; i += kWarp * N) {
    const Pack<T, N> u = load_pack<N>(a + row * columns + i), v = load_pack<N>(b + row * columns + i);
    for (int j = 0; j < N; ++j) sum += float(u[j]) * float(v[j]);
  }
  sum = warp_sum(sum);
  if (lane() == 0) y[row] = sum;
}

/// A warp to a row. Bytes: reads x (and y where it accumulates), writes y: 2 n b, accumulating 3 n b, the floor.
template <int N, class T>
KERNEL_BOUNDS(kRowThreads, 4)
void scale_rows_kernel(const T* x, const float* scale, T* y, int64_t rows, int64_t columns, bool accumulate) {
  const int64_t row = static_cast<int64_t>(block().x) * kRowsOfBlock + warp();
  if (row >= rows) return;
  const float factor = scale[row];
  for (int64_t i = lane() * N; i < columns; i += kWarp * N) {
    const Pack<T, N> v = load_pack<N>(x + row * columns + i);
    Pack<T, N> out{};
    if (accumulate) out = load_pack<N>(y + row * columns + i);
    for (int j = 0; j < N; ++j) {
      const float value = factor * float(v[j]);
      out[j] = T(accumulate ? float(out[j]) + value : value);
    }
    store_pack(y + row * columns + i, out);
  }
}

// ---- multi_positive: the negatives ----------------------------------------------------------------------------------

constexpr int kThreads = 256;
constexpr int64_t kChunk = 8192;  // negatives of one anchor to a block
constexpr int kRun = 4;           // packs that a thread has in flight

struct Negatives {
  const float* similarity;  // [anchors, keys]
  int64_t keys, chunks;     // chunks of an anchor
  const int32_t *own, *ids;
  const float* close[kMost];
  int close_count;
  float threshold, scale;  // scale: log2(e) / T
};

/// kRun packs of one anchor's negatives; an element that does not count is -infinity.
template <int N>
struct Run {
  float x[kRun][N];

  DEVICE Run(const Negatives& in, int64_t anchor, int64_t first, int64_t end) {
    Pack<float, N> value[kRun];
    bool counts[kRun][N];
    CSML_UNROLL
    for (int r = 0; r < kRun; ++r) {
      const int64_t at = first + int64_t{r} * kThreads * N;
      const bool inside = at < end;
      value[r] = inside ? load_pack<N>(in.similarity + anchor * in.keys + at) : Pack<float, N>{};
      for (int j = 0; j < N; ++j) counts[r][j] = inside;
    }
    if (in.own) {
      const int32_t own = in.own[anchor];
      CSML_UNROLL
      for (int r = 0; r < kRun; ++r) {
        const int64_t at = first + int64_t{r} * kThreads * N;
        if (at >= end) break;
        const Pack<int32_t, N> id = load_pack<N>(in.ids + at);
        for (int j = 0; j < N; ++j) counts[r][j] = counts[r][j] && id[j] != own;
      }
    }
    CSML_UNROLL
    for (int l = 0; l < kMost; ++l) {
      if (l >= in.close_count) break;
      CSML_UNROLL
      for (int r = 0; r < kRun; ++r) {
        const int64_t at = first + int64_t{r} * kThreads * N;
        if (at >= end) break;
        const Pack<float, N> other = load_pack<N>(in.close[l] + anchor * in.keys + at);
        for (int j = 0; j < N; ++j) counts[r][j] = counts[r][j] && !(other[j] > in.threshold);
      }
    }
    CSML_UNROLL
    for (int r = 0; r < kRun; ++r)
      for (int j = 0; j < N; ++j) x[r][j] = counts[r][j] ? value[r][j] : -kInfinity;
  }
};

/// Of some negatives of an anchor: the largest logit, sum of 2^(logit - largest), of the similarities, their number.
struct Part {
  double total;
  float most, sum;
  int64_t counted;
};

DEVICE float rescale(float from, float to) { return from == to ? 1.f : std::exp2(from - to); }

/// parts[anchor, chunk]. Bytes: reads the negatives and close once; ids from the caches. FLOPs: 5 an element.
template <int N>
KERNEL_BOUNDS(kThreads, 2)
void negatives_kernel(Negatives in, Part* parts) {
  const int64_t anchor = block().x / in.chunks, chunk = block().x % in.chunks;
  const int64_t end = min(in.keys, (chunk + 1) * kChunk);
  float most = -kInfinity, sum = 0;
  double total = 0;
  int counted = 0;
  for (int64_t first = chunk * kChunk + thread() * N; first < end; first += int64_t{kRun} * kThreads * N) {
    const Run<N> run(in, anchor, first, end);
    float top = most, similarity = 0;
    CSML_UNROLL
    for (int r = 0; r < kRun; ++r)
      for (int j = 0; j < N; ++j) top = max(top, run.x[r][j] * in.scale);
    sum *= rescale(most, top);
    most = top;
    CSML_UNROLL
    for (int r = 0; r < kRun; ++r)
      for (int j = 0; j < N; ++j) {
        const float x = run.x[r][j];
        if (x == -kInfinity) continue;
        sum += std::exp2(std::fma(x, in.scale, -most));
        similarity += x;
        ++counted;
      }
    total += similarity;
  }
  const float largest = block_max(most);
  sum = block_sum(sum * rescale(most, largest));
  total = block_sum(total);
  counted = block_sum(counted);
  if (thread() == 0) parts[block().x] = {total, largest, sum, counted};
}

// ---- multi_positive: an anchor --------------------------------------------------------------------------------------

/// What the other kernels need of an anchor. dnegatives = factor * 2^(logit - most).
struct Anchor {
  double loss, total;
  int64_t counted;
  float most, factor;
};

/// log(exp(a) + exp(b)); -infinity is exp's 0, NaN stays.
DEVICE double log_add(double a, double b) {
  if (a == -kInfinity) return b;
  if (b == -kInfinity) return a;
  return max(a, b) + std::log1p(std::exp(-std::fabs(a - b)));
}

/// Of one anchor, a lane to a positive: loss; pull = d loss / d s of the lane's positive; push = d loss / d log Z.
struct Loss {
  double loss = 0, pull = 0, push = 0;
};

/// w: 0 in lanes without a positive, whose s is anything finite.
DEVICE Loss loss_of(Form form, double w, double s, double log_z) {
  Loss a;
  const double total = warp_sum(w), most = warp_max(w);
  if (total == 0) return a;
  if (form == Form::csml) {
    const double gap = log_z - s;  // a positive's share of its softmax is 1 / (1 + exp(gap))
    a.loss = warp_sum(w > 0 ? w * (max(gap, 0.0) + std::log1p(std::exp(-std::fabs(gap)))) : 0.0);
    a.pull = -w / (1 + std::exp(-gap));
    a.push = -warp_sum(a.pull);
    return a;
  }
  const double log_u = w > 0 ? std::log(w / most) + s : -double{kInfinity}, top = warp_max(log_u);
  const double log_sum = top + std::log(warp_sum(std::exp(log_u - top))), log_d = log_add(log_sum, log_z);
  a.pull = total * std::exp(log_u - log_d) - (form == Form::out ? w : total * std::exp(log_u - log_sum));
  a.push = total * std::exp(log_z - log_d);
  if (form == Form::out) a.loss = warp_sum(w > 0 ? w * (log_d - s) : 0.0);
  if (form == Form::mil) a.loss = total * (log_d - log_sum);
  if (form == Form::in) a.loss = total * (log_d - log_sum - std::log(most / total));
  return a;
}

/// A warp to an anchor: joins its chunks, its loss, dpositives. Bytes: 32 for each chunk, 8 for each positive.
KERNEL_BOUNDS(kRowThreads, 2)
void anchor_kernel(const Part* parts, int64_t chunks, const float* positives, const float* weights, int count,
                   int64_t batch, double inverse, Form form, float* dpositives, Anchor* anchors) {
  const int64_t i = static_cast<int64_t>(block().x) * kRowsOfBlock + warp();
  if (i >= batch) return;
  float most = -kInfinity;
  for (int64_t c = lane(); c < chunks; c += kWarp) most = max(most, parts[i * chunks + c].most);
  most = warp_max(most);
  double sum = 0, total = 0;
  int64_t counted = 0;
  for (int64_t c = lane(); c < chunks; c += kWarp) {
    const Part p = parts[i * chunks + c];
    sum += p.sum * rescale(p.most, most);
    total += p.total;
    counted += p.counted;
  }
  sum = warp_sum(sum);
  total = warp_sum(total);
  counted = warp_sum(counted);
  const double log_z = counted > 0 ? most * kLn2 + std::log(sum) : -double{kInfinity};

  const bool mine = lane() < count;
  const double w = mine ? weights[lane()] : 0.f, similarity = mine ? positives[lane() * batch + i] : 0.f;
  const double scale = 1 / static_cast<double>(batch);
  double loss = 0, pull = 0, push = 0;
  if (form == Form::cosine) {
    loss = warp_sum(w * (2 - 2 * similarity));
    pull = -2 * w;
  } else {
    const Loss a = loss_of(form, w, similarity * inverse, log_z);
    loss = a.loss, pull = a.pull * inverse, push = a.push * inverse;
  }
  if (mine && dpositives) dpositives[lane() * batch + i] = static_cast<float>(scale * pull);
  if (lane() == 0)
    anchors[i] = {loss, total, counted, most, counted > 0 ? static_cast<float>(scale * push / sum) : 0.f};
}

/// Bytes: reads the negatives and close, writes dnegatives: 8 an element, and 4 for each close. FLOPs: 3 an element.
template <int N>
KERNEL_BOUNDS(kThreads, 2)
void negatives_gradient_kernel(Negatives in, const Anchor* anchors, float* dnegatives) {
  const int64_t at = grid().x - 1 - int64_t{block().x}, anchor = at / in.chunks, chunk = at % in.chunks;
  const int64_t end = min(in.keys, (chunk + 1) * kChunk);
  const float most = anchors[anchor].most, factor = anchors[anchor].factor;
  for (int64_t first = chunk * kChunk + thread() * N; first < end; first += int64_t{kRun} * kThreads * N) {
    const Run<N> run(in, anchor, first, end);
    CSML_UNROLL
    for (int r = 0; r < kRun; ++r) {
      const int64_t to = first + int64_t{r} * kThreads * N;
      if (to >= end) break;
      Pack<float, N> d;
      for (int j = 0; j < N; ++j) {
        const float x = run.x[r][j];
        d[j] = x == -kInfinity ? 0.f : factor * std::exp2(std::fma(x, in.scale, -most));
      }
      store_pack(dnegatives + anchor * in.keys + to, d);
    }
  }
}

/// One block.
KERNEL_BOUNDS(kThreads, 1)
void multi_positive_mean_kernel(const Anchor* anchors, const float* positives, int count, int64_t batch, float* loss,
                                float* positive_similarity, float* negative_similarity) {
  double sum = 0, total = 0;
  int64_t counted = 0;
  for (int64_t i = thread(); i < batch; i += block_threads()) {
    sum += anchors[i].loss;
    total += anchors[i].total;
    counted += anchors[i].counted;
  }
  sum = block_sum(sum);
  total = block_sum(total);
  counted = block_sum(counted);
  if (thread() == 0) {
    *loss = static_cast<float>(sum / static_cast<double>(batch));
    if (negative_similarity)
      *negative_similarity = static_cast<float>(counted > 0 ? total / static_cast<double>(counted) : 0);
  }
  if (!positive_similarity) return;
  for (int j = 0; j < count; ++j) {
    double mean = 0;
    for (int64_t i = thread(); i < batch; i += block_threads()) mean += positives[j * batch + i];
    mean = block_sum(mean);
    if (thread() == 0) positive_similarity[j] = static_cast<float>(mean / static_cast<double>(batch));
  }
}

// ---- host side ------------------------------------------------------------------------------------------------------

void check_shape(const char* op, const char* name, const ConstView& x, const Shape& shape) {
  CHECK(x && x.shape == shape, "{}: {} is {}, must be {}", op, name, x.shape.text(), shape.text());
}

void check_multi_positive(const Backend::MultiPositive& args, int64_t keys) {
  const char* op = "multi_positive";
  const int64_t count = args.positives.shape[0], batch = args.positives.shape[1];
  const Shape pairs{batch, keys};
  const bool has_negatives = args.negatives && args.form != Form::cosine;
  CHECK(count >= 1 && count <= kMost && batch > 0, "{}: {} positives of {} anchors; 1 to {} positives", op, count,
        batch, kMost);
  if (has_negatives) check_shape(op, "negatives", args.negatives, pairs);
  check_shape(op, "weights", args.weights, {count});
  check_shape(op, "loss", args.loss, {1});
  CHECK(static_cast<bool>(args.own) == static_cast<bool>(args.ids), "{}: own and ids come together", op);
  if (args.own) check_shape(op, "own", args.own, {batch});
  if (args.ids && has_negatives) check_shape(op, "ids", args.ids, {keys});
  for (int l = 0; l < args.close.count; ++l) check_shape(op, "close", args.close[l], pairs);
  if (args.dpositives) check_shape(op, "dpositives", args.dpositives, args.positives.shape);
  if (args.dnegatives) check_shape(op, "dnegatives", args.dnegatives, pairs);
  if (args.positive_similarity) check_shape(op, "positive_similarity", args.positive_similarity, {count});
  if (args.negative_similarity) check_shape(op, "negative_similarity", args.negative_similarity, {1});
  CHECK(args.temperature > 0, "{}: temperature {} must be positive", op, args.temperature);
}

/// The negatives of a call and whether they may be read in packs.
Negatives negatives_of(const Backend::MultiPositive& args, int64_t keys, bool& wide) {
  Negatives in{.similarity = args.negatives.as<float>(),
               .keys = keys,
               .chunks = ceil_div(keys, kChunk),
               .own = args.own ? args.own.as<int32_t>() : nullptr,
               .ids = args.ids ? args.ids.as<int32_t>() : nullptr,
               .close = {},
               .close_count = args.close.count,
               .threshold = args.threshold,
               .scale = kLog2E / args.temperature};
  wide = keys % kPack<float> == 0 && aligned(in.similarity) && aligned(in.ids) && aligned(args.dnegatives.data);
  for (int l = 0; l < in.close_count; ++l) {
    in.close[l] = args.close[l].as<float>();
    wide = wide && aligned(in.close[l]);
  }
  return in;
}

}  // namespace

void row_dot(Context& context, const Backend::RowDot& args) {
  CHECK(args.a.shape.rank() == 2, "row_dot: a {} must be a matrix", args.a.shape.text());
  check_shape("row_dot", "b", args.b, args.a.shape);
  const int64_t rows = args.a.shape[0], columns = args.a.shape[1];
  check_shape("row_dot", "y", args.y, {rows});
  with_width(args.a.dtype, columns, {args.a.data, args.b.data}, [&]<class T, int N>(T, Width<N>) {
    launch(context, {.name = "row_dot", .grid = {ceil_div(rows, kRowsOfBlock)}, .threads = kRowThreads},
           row_dot_kernel<N, T>, args.a.as<T>(), args.b.as<T>(), args.y.as<float>(), rows, columns);
  });
}

void scale_rows(Context& context, const Backend::ScaleRows& args) {
  CHECK(args.x.shape.rank() == 2, "scale_rows: x {} must be a matrix", args.x.shape.text());
  const int64_t rows = args.x.shape[0], columns = args.x.shape[1];
  check_shape("scale_rows", "scale", args.scale, {rows});
  check_shape("scale_rows", "y", args.y, args.x.shape);
  with_width(args.x.dtype, columns, {args.x.data, args.y.data}, [&]<class T, int N>(T, Width<N>) {
    launch(context, {.name = "scale_rows", .grid = {ceil_div(rows, kRowsOfBlock)}, .threads = kRowThreads},
           scale_rows_kernel<N, T>, args.x.as<T>(), args.scale.as<float>(), args.y.as<T>(), rows, columns,
           args.write == Write::accumulate);
  });
}

void multi_positive(Context& context, const Backend::MultiPositive& args) {
  CHECK(args.positives.shape.rank() == 2, "multi_positive: positives {} must be [P, B]", args.positives.shape.text());
  const bool has_negatives = args.negatives && args.form != Form::cosine;
  CHECK(!has_negatives || args.negatives.shape.rank() == 2, "multi_positive: negatives {} must be [B, K]",
        args.negatives.shape.text());
  const int64_t keys = has_negatives ? args.negatives.shape[1] : 0;
  check_multi_positive(args, keys);
  const int count = static_cast<int>(args.positives.shape[0]);
  const int64_t batch = args.positives.shape[1];

  bool wide = false;
  const Negatives in = has_negatives ? negatives_of(args, keys, wide) : Negatives{};
  Anchor* anchors = static_cast<Anchor*>(context.scratch(static_cast<size_t>(batch) * sizeof(Anchor) +
                                                         static_cast<size_t>(batch * in.chunks) * sizeof(Part)));
  Part* parts = reinterpret_cast<Part*>(anchors + batch);
  const Grid grid{.x = batch * in.chunks};
  launch(context, {.name = "multi_positive negatives", .grid = grid, .threads = kThreads},
         wide ? negatives_kernel<kPack<float>> : negatives_kernel<1>, in, parts);
  const float* positives = args.positives.as<float>();
  launch(context, {.name = "multi_positive", .grid = {ceil_div(batch, kRowsOfBlock)}, .threads = kRowThreads},
         anchor_kernel, parts, in.chunks, positives, args.weights.as<float>(), count, batch, 1.0 / args.temperature,
         args.form, args.dpositives ? args.dpositives.as<float>() : nullptr, anchors);
  if (args.dnegatives)
    launch(context, {.name = "multi_positive gradient", .grid = grid, .threads = kThreads},
           wide ? negatives_gradient_kernel<kPack<float>> : negatives_gradient_kernel<1>, in, anchors,
           args.dnegatives.as<float>());
  const auto wanted = [](const View& v) { return v ? v.as<float>() : nullptr; };
  launch(context, {.name = "multi_positive mean", .threads = kThreads}, multi_positive_mean_kernel, anchors, positives,
         count, batch, args.loss.as<float>(), wanted(args.positive_similarity), wanted(args.negative_similarity));
}

}  // namespace csml::cuda
