// info_nce. query, positives, queue and dquery are f32, bf16 or f16 (one type in a call), the rest is f32.
//
// It streams the queue once: a block takes 64 queries and a span of the queue, tile by tile, and keeps for each
// query the running maximum m, Z = sum exp(l - m) and G = sum exp(l - m) n, rescaled when m grows (as in
// FlashAttention, Dao et al. 2022, with keys and values both the queue). A second kernel joins the spans in fixed order
// and adds the positives; a third takes the means. Logits l = q . n / T are in units of log 2, so that 2^x replaces
// e^x. 16-bit types multiply on the tensor cores with sums in f32, up to 256 columns; f32 and wider rows by FMA.
#include "kernels/cuda/tile.cuh"

namespace csml::cuda {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLog2E = 1.44269504f;

// ---- info_nce: the queue --------------------------------------------------------------------------------------------

/// Work of the queue kernels. Per span and query: statistics [3, spans, queries] = maximum, Z, sum of the products
/// q . n; gradient [spans, queries, dim] = G, or null.
template <class T>
struct Stream {
  Rows<T> queries, queue;
  float scale;  // log2(e) / T
  int64_t span;
  float* statistics;
  float* gradient;

  DEVICE void store(int64_t query, float most, float sum, float products) const {
    const int64_t count = queries.end, plane = grid().y * count, at = block().y * count + query;
    statistics[at] = most;
    statistics[plane + at] = sum;
    statistics[2 * plane + at] = products;
  }
  DEVICE float* gradient_of(int64_t query) const { return gradient + (block().y * queries.end + query) * queries.dim; }
};

/// The new maximum, the sum so far and the gradient so far are to be multiplied by `rescale`.
DEVICE float raise(float& most, float candidate) {
  const float before = most;
  most = max(most, candidate);
  return before == most ? 1.f : std::exp2(before - most);
}

constexpr int kColumns = 128;  // of the gradient, of one block of the f32 kernel

/// By FMA, any number of columns: grid.z cuts the gradient's columns, each z multiplies all columns for the logits.
/// Bytes: the queue twice per 64 queries from the caches, once from memory; G. FLOPs: 4 B K D up to 128 columns, the
/// floor: 256 queries of 128 against 65,536 rows are 8.6 GFLOP.
template <class T>
KERNEL_BOUNDS(FloatTile::kThreads, 2)
void info_nce_float_kernel(Stream<T> work) {
  constexpr int kDepth = FloatTile::kDepth, kStride = FloatTile::kStride, kChunk = kTileRows * kStride;
  constexpr int kShareStride = kTileRows + 4;
  const auto stages = dynamic_shared<float>("stages", 0, 4 * kChunk);
  const auto shares = dynamic_shared<float>("shares", 4 * kChunk * 4, kTileRows * kShareStride);
  const int64_t query0 = block().x * int64_t{kTileRows}, dim = work.queue.dim;
  const int64_t first = block().y * work.span, end = min(first + work.span, work.queue.end);
  const Rows<T> queue = work.queue.until(end);
  const int chunks = static_cast<int>(ceil_div(dim, kDepth)), chunk0 = block().z * (kColumns / kDepth);
  const int mine = work.gradient ? min(chunks - chunk0, kColumns / kDepth) : 0, stages_of_tile = chunks + mine;
  const int64_t total = ceil_div(end - first, kTileRows) * stages_of_tile;
  // A tile's stages: chunks of queries and queue for the products, then chunks of the queue for the gradient.
  const auto stage = [&](int64_t i) {
    const int buffer = static_cast<int>(i % 2) * 2 * kChunk, part = static_cast<int>(i % stages_of_tile);
    const int64_t row = first + i / stages_of_tile * kTileRows;
    const int64_t column = (part < chunks ? part : chunk0 + part - chunks) * int64_t{kDepth};
    if (part < chunks)
      stage_rows<kTileRows, kDepth, kStride>(stages.slice(buffer, kChunk), work.queries, query0, column);
    stage_rows<kTileRows, kDepth, kStride>(stages.slice(buffer + kChunk, kChunk), queue, row, column);
    copy_commit();
  };
  int64_t now = 0;
  /// Waits for the next stage, starts the one after it, returns where the queue's chunk begins.
  const auto next = [&] {
    copy_wait();
    sync_block();  // the stage has arrived for all, and nobody reads the other buffer any more
    if (now + 1 < total) stage(now + 1);
    return static_cast<int>(now++ % 2) * 2 * kChunk + kChunk;
  };

  float most[4], sum[4] = {}, products[4] = {}, gradient[kColumns / kDepth][4][2] = {};
  for (float& m : most) m = -kInfinity;
  stage(0);
  for (int64_t row = first; row < end; row += kTileRows) {
    FloatTile tile;
    for (int c = 0; c < chunks; ++c) {
      const int at = next();
      tile.multiply(stages.slice(at - kChunk, kChunk), stages.slice(at, kChunk),
                    static_cast<int>(min(int64_t{kDepth}, dim - c * kDepth)));
    }
    for (int i = 0; i < 4; ++i) {
      float top = -kInfinity;
      for (int j = 0; j < 4; ++j) {
        products[i] += tile.s[i][j];  // 0 for rows past the end
        tile.s[i][j] = row + FloatTile::column(j) < end ? tile.s[i][j] * work.scale : -kInfinity;
        top = max(top, tile.s[i][j]);
      }
      for (int mask = 8; mask > 0; mask /= 2) top = max(top, shuffle_xor(top, mask));  // 16 threads have a row
      const float rescale = raise(most[i], top);
      sum[i] *= rescale;
      for (int c = 0; c < kColumns / kDepth; ++c) gradient[c][i][0] *= rescale, gradient[c][i][1] *= rescale;
      for (int j = 0; j < 4; ++j) {
        const float share = std::exp2(tile.s[i][j] - most[i]);
        sum[i] += share;
        shares[FloatTile::row(i) * kShareStride + FloatTile::column(j)] = share;
      }
    }
    sync_warp();  // a row's shares stay within its warp
    CSML_UNROLL
    for (int c = 0; c < kColumns / kDepth; ++c) {
      if (c >= mine) break;
      const auto rows = stages.slice(next(), kChunk);
      for (int n = 0; n < kTileRows; n += 4) {
        Pack<float, 4> share[4];
        for (int i = 0; i < 4; ++i) share[i] = load_pack<4>(shares, FloatTile::row(i) * kShareStride + n);
        for (int l = 0; l < 4; ++l) {
          const Pack<float, 2> key = load_pack<2>(rows, (n + l) * kStride + 2 * (thread() % 16));
          for (int i = 0; i < 4; ++i) {
            gradient[c][i][0] += share[i][l] * key[0];
            gradient[c][i][1] += share[i][l] * key[1];
          }
        }
      }
    }
    sync_warp();
  }

  CSML_UNROLL
  for (int i = 0; i < 4; ++i) {
    for (int mask = 8; mask > 0; mask /= 2) {
      sum[i] += shuffle_xor(sum[i], mask);
      products[i] += shuffle_xor(products[i], mask);
    }
    const int64_t query = query0 + FloatTile::row(i);
    if (query >= work.queries.end) continue;
    if (thread() % 16 == 0 && block().z == 0) work.store(query, most[i], sum[i], products[i]);
    CSML_UNROLL
    for (int c = 0; c < kColumns / kDepth; ++c) {
      if (c >= mine) break;
      for (int e = 0; e < 2; ++e) {
        const int64_t column = (chunk0 + c) * int64_t{kDepth} + 2 * (thread() % 16) + e;
        if (column < dim) work.gradient_of(query)[column] = gradient[c][i][e];
      }
    }
  }
}

/// On the tensor cores, up to kDim columns; 4 warps with 16 queries each. Products, shares and G stay in registers: the
/// accumulators of the first product are, packed to 16 bits, operand a of the second.
/// Bytes: the queue once per 64 queries from the caches, once from memory; G. FLOPs: 4 B K D, the floor: 256 queries of
/// 128 against 65,536 rows are 8.6 GFLOP, and the queue in 16 bits is 17 MB.
template <int kDim, class T>
KERNEL_BOUNDS(128, 1)
void info_nce_half_kernel(Stream<T> work) {
  constexpr int kTile = kDim > 128 ? 32 : 64, kStride = kDim + 8;  // registers and shared memory for wide rows
  const auto queries = dynamic_shared<T>("queries", 0, kTileRows * kStride);
  const auto stages = dynamic_shared<T>("stages", kTileRows * kStride * 2, 2 * kTile * kStride);
  const int64_t query0 = block().x * int64_t{kTileRows}, dim = work.queue.dim;
  const int64_t first = block().y * work.span, end = min(first + work.span, work.queue.end);
  const Rows<T> queue = work.queue.until(end);
  const int row = warp() * 16, g = lane() / 4, t = lane() % 4;
  const auto stage = [&](int64_t at) {
    const int buffer = static_cast<int>((at - first) / kTile % 2) * kTile * kStride;
    stage_rows<kTile, kDim, kStride>(stages.slice(buffer, kTile * kStride), queue, at, 0);
    copy_commit();
  };

  float most[2] = {-kInfinity, -kInfinity}, sum[2] = {}, products[2] = {};
  FragmentD gradient[kDim / 8] = {};
  FragmentA<T> query[kDim / 16];
  stage_rows<kTileRows, kDim, kStride>(queries, work.queries, query0, 0);
  stage(first);
  for (int64_t at = first; at < end; at += kTile) {
    copy_wait();
    sync_block();  // the tile has arrived for all, and nobody reads the other buffer any more
    if (at + kTile < end) stage(at + kTile);
    const auto keys = stages.slice(static_cast<int>((at - first) / kTile % 2) * kTile * kStride, kTile * kStride);
    if (kDim <= 128 && at == first) {
      CSML_UNROLL
      for (int k = 0; k < kDim; k += 16) query[k / 16] = load_a(queries, kStride, row, k);
    }
    FragmentD s[kTile / 8] = {};
    CSML_UNROLL
    for (int k = 0; k < kDim; k += 16) {
      if (k >= dim) break;
      if (kDim > 128) query[k / 16] = load_a(queries, kStride, row, k);
      CSML_UNROLL
      for (int j = 0; j < kTile / 8; j += 2) {
        FragmentB<T> b[2];
        load_b_rows(b, keys, kStride, 8 * j, k);
        mma(s[j], query[k / 16], b[0]);
        mma(s[j + 1], query[k / 16], b[1]);
      }
    }
    CSML_UNROLL
    for (int half = 0; half < 2; ++half) {  // rows g and g + 8
      float top = -kInfinity;
      for (int j = 0; j < kTile / 8; ++j)
        for (int e = 2 * half; e < 2 * half + 2; ++e) {
          float& x = s[j].v[e];
          products[half] += x;  // 0 for rows past the end
          x = at + 8 * j + 2 * t + e % 2 < end ? x * work.scale : -kInfinity;
          top = max(top, x);
        }
      top = max(top, shuffle_xor(top, 1));  // four lanes have a row
      top = max(top, shuffle_xor(top, 2));
      const float rescale = raise(most[half], top);
      sum[half] *= rescale;
      for (FragmentD& d : gradient) d.v[2 * half] *= rescale, d.v[2 * half + 1] *= rescale;
      for (int j = 0; j < kTile / 8; ++j)
        for (int e = 2 * half; e < 2 * half + 2; ++e) {
          s[j].v[e] = std::exp2(s[j].v[e] - most[half]);
          sum[half] += s[j].v[e];
        }
    }
    if (!work.gradient) continue;
    CSML_UNROLL
    for (int j = 0; j < kTile / 8; j += 2) {
      const FragmentA<T> share{{pack_pair<T>(s[j].v[0], s[j].v[1]), pack_pair<T>(s[j].v[2], s[j].v[3]),
                                pack_pair<T>(s[j + 1].v[0], s[j + 1].v[1]),
                                pack_pair<T>(s[j + 1].v[2], s[j + 1].v[3])}};
      CSML_UNROLL
      for (int c = 0; c < kDim / 8; c += 2) {
        if (8 * c >= dim) break;
        FragmentB<T> b[2];
        load_b_depth(b, keys, kStride, 8 * j, 8 * c);
        mma(gradient[c], share, b[0]);
        mma(gradient[c + 1], share, b[1]);
      }
    }
  }

  CSML_UNROLL
  for (int half = 0; half < 2; ++half) {
    for (int mask = 2; mask > 0; mask /= 2) {
      sum[half] += shuffle_xor(sum[half], mask);
      products[half] += shuffle_xor(products[half], mask);
    }
    const int64_t i = query0 + row + g + 8 * half;
    if (i >= work.queries.end) continue;
    if (t == 0) work.store(i, most[half], sum[half], products[half]);
    if (!work.gradient) continue;
    for (int c = 0; c < kDim / 8; ++c)
      for (int e = 0; e < 2; ++e)
        if (8 * c + 2 * t + e < dim) work.gradient_of(i)[8 * c + 2 * t + e] = gradient[c].v[2 * half + e];
  }
}

// ---- info_nce: positives and means ----------------------------------------------------------------------------------

template <class T>
struct Positives {
  const T* rows[ConstViews::kMax];
  int count;
};

constexpr int kMergeWarps = 4;  // share the spans of a query: reads of G wait on memory, so several at once

/// A block to a query: joins its spans, adds the positives. terms [2 + positives, queries]: loss, similarity to each
/// positive, sum of q . n. With a_j = Z / (exp(s_j) + Z) = 1 - P_j the loss of a positive is -log(1 - a_j) and its
/// gradient -a_j b_j plus a_j times the mean of the queue under its softmax: no exp(s_j) or Z on its own overflows.
/// Bytes: reads statistics, G and the positives once, writes dquery: spans * B * D * 4, the floor, 8 MB for 64 spans of
/// 256 queries of 128, which the second-level cache still holds.
template <int N, class T>
KERNEL_BOUNDS(kMergeWarps* kWarp, 4)
void info_nce_merge_kernel(const T* query, Positives<T> positives, const float* weights, const float* statistics,
                           const float* gradients, T* dquery, double* terms, int64_t queries, int64_t dim, int spans,
                           float temperature) {
  SHARED(float, repels, kMergeWarps* kWarp* N);
  const int64_t i = block().x, plane = spans * queries;
  float most = -kInfinity;  // the same in every warp from here to push
  for (int s = lane(); s < spans; s += kWarp) most = max(most, statistics[s * queries + i]);
  most = warp_max(most);
  double sum = 0, products = 0;
  for (int s = lane(); s < spans; s += kWarp) {
    const int64_t at = s * queries + i;
    sum += statistics[plane + at] * std::exp2(statistics[at] - most);
    products += statistics[2 * plane + at];
  }
  sum = warp_sum(sum);
  products = warp_sum(products);
  const double log_sum = (most + std::log2(sum)) * 0.69314718055994531;
  double loss = 0;
  float pull[ConstViews::kMax], push = 0;
  CSML_UNROLL
  for (int j = 0; j < ConstViews::kMax; ++j) {
    pull[j] = 0;
    if (j >= positives.count) continue;
    double similarity = 0;
    for (int64_t d = lane() * N; d < dim; d += kWarp * N) {
      const Pack<T, N> a = load_pack<N>(query + i * dim + d), b = load_pack<N>(positives.rows[j] + i * dim + d);
      for (int e = 0; e < N; ++e) similarity += static_cast<double>(float(a[e])) * float(b[e]);
    }
    similarity = warp_sum(similarity);
    const double gap = log_sum - similarity / temperature;
    loss += weights[j] * (max(gap, 0.0) + std::log1p(std::exp(-std::fabs(gap))));
    pull[j] = static_cast<float>(weights[j] / (1 + std::exp(-gap)));
    push += pull[j];
    if (thread() == 0) terms[(1 + j) * queries + i] = similarity;
  }
  if (thread() == 0) {
    terms[i] = loss;
    terms[(1 + positives.count) * queries + i] = products;
  }
  if (!dquery) return;
  const float scale = 1.f / (static_cast<float>(queries) * temperature), share = push / static_cast<float>(sum);
  for (int64_t d0 = 0; d0 < dim; d0 += kWarp * N) {
    const int64_t d = d0 + lane() * N;
    float repel[N] = {};
    if (d < dim)
      for (int s = warp(); s < spans; s += kMergeWarps) {
        const float weight = std::exp2(statistics[s * queries + i] - most);
        const Pack<float, N> g = load_pack<N>(gradients + (s * queries + i) * dim + d);
        for (int e = 0; e < N; ++e) repel[e] += weight * g[e];
      }
    for (int e = 0; e < N; ++e) repels[(e * kMergeWarps + warp()) * kWarp + lane()] = repel[e];
    sync_block();
    if (warp() == 0 && d < dim) {
      Pack<T, N> out;
      float attract[N] = {};
      CSML_UNROLL
      for (int j = 0; j < ConstViews::kMax; ++j) {
        if (j >= positives.count) break;
        const Pack<T, N> b = load_pack<N>(positives.rows[j] + i * dim + d);
        for (int e = 0; e < N; ++e) attract[e] += pull[j] * float(b[e]);
      }
      for (int e = 0; e < N; ++e) {
        float all = 0;
        for (int w = 0; w < kMergeWarps; ++w) all += repels[(e * kMergeWarps + w) * kWarp + lane()];
        out[e] = T(scale * (share * all - attract[e]));
      }
      store_pack(dquery + i * dim + d, out);
    }
    sync_block();
  }
}

/// The means over the queries, one block.
KERNEL void info_nce_mean_kernel(const double* terms, float* loss, float* positive_similarity,
                                 float* negative_similarity, int64_t queries, int positives, int64_t queue) {
  for (int k = 0; k < positives + 2; ++k) {
    double sum = 0;
    for (int64_t i = thread(); i < queries; i += block_threads()) sum += terms[k * queries + i];
    sum = block_sum(sum) / static_cast<double>(queries);
    if (thread() != 0) continue;
    if (k == 0)
      *loss = static_cast<float>(sum);
    else if (k <= positives && positive_similarity)
      positive_similarity[k - 1] = static_cast<float>(sum);
    else if (k > positives && negative_similarity)
      *negative_similarity = static_cast<float>(sum / static_cast<double>(queue));
  }
}

template <class T>
void stream_queue(Context& context, const Stream<T>& work, int64_t spans) {
  const int64_t tiles = ceil_div(work.queries.end, kTileRows), dim = work.queries.dim;
  if constexpr (!std::is_same_v<T, float>) {
    const auto shared = [](int columns, int tile) {
      return static_cast<size_t>(kTileRows + 2 * tile) * (columns + 8) * 2;
    };
    const Launch how{.name = "info_nce", .grid = {tiles, spans}, .threads = 128};
    Launch sized = how;
    sized.shared_bytes = dim <= 128 ? shared(128, 64) : shared(256, 32);
    if (dim <= 128) return launch(context, sized, info_nce_half_kernel<128, T>, work);
    if (dim <= 256) return launch(context, sized, info_nce_half_kernel<256, T>, work);
  }
  launch(context,
         {.name = "info_nce",
          .grid = {tiles, spans, work.gradient ? ceil_div(dim, kColumns) : 1},
          .threads = FloatTile::kThreads,
          .shared_bytes = kTileRows * (4 * FloatTile::kStride + kTileRows + 4) * sizeof(float)},
         info_nce_float_kernel<T>, work);
}

template <class T>
void info_nce_as(Context& context, const Backend::InfoNce& args) {
  const int64_t batch = args.query.shape[0], dim = args.query.shape[1], length = args.queue.shape[0];
  // Spans by shape alone: about 256 blocks, none for less than 512 rows.
  const int64_t tiles = ceil_div(batch, kTileRows);
  const int64_t wanted = max(min(ceil_div(256, tiles), length / 512), int64_t{1});
  const int64_t span = ceil_div(ceil_div(length, wanted), kTileRows) * kTileRows, spans = ceil_div(length, span);
  const int64_t gradients = args.dquery ? spans * batch * dim : 0;
  const int positives = args.positives.count;
  // Each part begins at a multiple of 16 bytes.
  const int64_t terms_size = ceil_div((positives + 2) * batch, 2) * 2,
                statistics_size = ceil_div(3 * spans * batch, 4) * 4;
  double* terms = context.scratch<double>(terms_size + ceil_div(statistics_size + gradients, 2));
  float* statistics = reinterpret_cast<float*>(terms + terms_size);
  float* gradient = args.dquery ? statistics + statistics_size : nullptr;

  const T* query = args.query.as<T>();
  stream_queue<T>(context,
                  {Rows<T>(query, batch, dim), Rows<T>(args.queue.as<T>(), length, dim), kLog2E / args.temperature,
                   span, statistics, gradient},
                  spans);
  Positives<T> rows{};
  rows.count = positives;
  for (int j = 0; j < positives; ++j) rows.rows[j] = args.positives[j].as<T>();
  const float* weights = args.weights.as<float>();
  const auto wanted_f32 = [](const View& v) { return v ? v.as<float>() : nullptr; };
  constexpr int N = 4;
  bool wide = dim % N == 0 && aligned(query, N * sizeof(T)) && aligned(args.dquery.data, N * sizeof(T));
  for (int j = 0; j < positives; ++j) wide = wide && aligned(rows.rows[j], N * sizeof(T));
  launch(context, {.name = "info_nce merge", .grid = {batch}, .threads = kMergeWarps * kWarp},
         wide ? info_nce_merge_kernel<N, T> : info_nce_merge_kernel<1, T>, query, rows, weights, statistics, gradient,
         args.dquery ? args.dquery.as<T>() : nullptr, terms, batch, dim, static_cast<int>(spans), args.temperature);
  launch(context, {.name = "info_nce mean"}, info_nce_mean_kernel, terms, args.loss.as<float>(),
         wanted_f32(args.positive_similarity), wanted_f32(args.negative_similarity), batch, positives, length);
}

void check_shape(const char* name, const ConstView& x, const Shape& shape) {
  CHECK(x && x.shape == shape, "info_nce: {} is {}, must be {}", name, x.shape.text(), shape.text());
}

}  // namespace

void info_nce(Context& context, const Backend::InfoNce& args) {
  CHECK(args.query.shape.rank() == 2, "info_nce: {} must be a matrix", args.query.shape.text());
  const int64_t batch = args.query.shape[0], dim = args.query.shape[1];
  const int positives = args.positives.count;
  CHECK(batch > 0 && dim > 0 && positives > 0, "info_nce: query {} with {} positives has no loss",
        args.query.shape.text(), positives);
  CHECK(args.queue && args.queue.shape.rank() == 2 && args.queue.shape[0] > 0 && args.queue.shape[1] == dim,
        "info_nce: queue {} does not fit query {}", args.queue.shape.text(), args.query.shape.text());
  for (int j = 0; j < positives; ++j) check_shape("a positive", args.positives[j], args.query.shape);
  check_shape("weights", args.weights, {positives});
  check_shape("loss", args.loss, {1});
  if (args.dquery) check_shape("dquery", args.dquery, args.query.shape);
  if (args.positive_similarity) check_shape("positive_similarity", args.positive_similarity, {positives});
  if (args.negative_similarity) check_shape("negative_similarity", args.negative_similarity, {1});
  CHECK(args.temperature > 0, "info_nce: temperature {} must be positive", args.temperature);
  with_float_type(args.query.dtype, [&]<class T>(T) { info_nce_as<T>(context, args); });
}

}  // namespace csml::cuda
