// The k nearest rows of a bank by inner product, exact: the selection is fused behind the product, scores never reach
// memory. queries and bank are f32 (multiplied by FMA, exactly as f32) or bf16 or f16 (on the tensor cores, f32 sums).
//
// A block takes 64 queries and a span of the bank, tile by tile. A warp owns whole rows of a tile; it compares them
// with the rows' thresholds in registers, and only where something is above passes them through shared memory into the
// row's list: keys in descending order, one or two to a lane. Spans meet in a second kernel. Larger k than the list
// takes several passes over the bank, each for the keys below the last one found.
#include "kernels/cuda/tile.cuh"

namespace csml::cuda {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// ---- keys -----------------------------------------------------------------------------------------------------------

/// A score and its index as one integer: greater is better, that is a higher score or an equal score of lower index.
/// All keys differ, so what is kept does not depend on the order of insertion. 0 is no key.
using Key = uint64_t;

DEVICE Key key_of(float score, int64_t index) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, score + 0.f);         // -0 becomes 0: they are equal scores
  const uint32_t order = bits ^ (bits >> 31 ? 0xFFFFFFFFu : 0x80000000u);  // ascending as the score
  return static_cast<Key>(order) << 32 | (0xFFFFFFFFu - static_cast<uint32_t>(index));
}
DEVICE float score_of(Key key) {
  if (key == 0) return -kInfinity;
  const uint32_t order = static_cast<uint32_t>(key >> 32);
  return __builtin_bit_cast(float, order ^ (order >> 31 ? 0x80000000u : 0xFFFFFFFFu));
}
DEVICE int32_t index_of(Key key) {
  return key == 0 ? -1 : static_cast<int32_t>(0xFFFFFFFFu - static_cast<uint32_t>(key));
}

/// A warp's list of 32 R keys, descending: rank 32 j + lane is v[j].
template <int R>
struct Best {
  Key v[R];

  DEVICE Key at(int rank) const {
    Key found = 0;
    for (int j = 0; j < R; ++j) {
      const Key key = shuffle(v[j], rank % kWarp);
      if (j == rank / kWarp) found = key;
    }
    return found;
  }
  /// The same key in all lanes; the last one falls out.
  DEVICE void insert(Key key) {
    for (int j = R - 1; j >= 0; --j) {
      Key before = shuffle_up(v[j], 1);
      const Key carried = j > 0 ? shuffle(v[j > 0 ? j - 1 : 0], kWarp - 1) : ~Key{0};
      if (lane() == 0) before = carried;
      v[j] = v[j] > key ? v[j] : before > key ? key : before;
    }
  }
  /// Every lane's key where `take`: a few one by one, many sorted and merged (bitonic networks, Batcher 1968).
  DEVICE void insert_all(Key key, bool take) {
    constexpr int kFew = 6;
    uint32_t votes = warp_ballot(take);
    int count = 0;
    for (uint32_t left = votes; left != 0 && count <= kFew; left &= left - 1) ++count;
    if (count <= kFew) {
      for (int i = 0; votes != 0; ++i, votes >>= 1)
        if (votes & 1) insert(shuffle(key, i));
      return;
    }
    Key sorted = take ? key : 0;
    for (int size = 2; size <= kWarp; size *= 2)
      for (int mask = size / 2; mask > 0; mask /= 2)
        exchange(sorted, mask, ((lane() & size) == 0) == ((lane() & mask) == 0));
    v[R - 1] = max(v[R - 1], shuffle(sorted, kWarp - 1 - lane()));
    sort_bitonic(v[R - 1]);
    for (int j = R - 1; j > 0; --j) {
      const Key above = v[j > 0 ? j - 1 : 0], below = shuffle(v[j], kWarp - 1 - lane());
      v[j > 0 ? j - 1 : 0] = max(above, below);
      v[j] = min(above, below);
      sort_bitonic(v[j > 0 ? j - 1 : 0]);
      sort_bitonic(v[j]);
    }
  }

 private:
  DEVICE static void exchange(Key& key, int mask, bool larger) {
    const Key other = shuffle_xor(key, mask);
    key = larger ? max(key, other) : min(key, other);
  }
  DEVICE static void sort_bitonic(Key& key) {
    for (int mask = kWarp / 2; mask > 0; mask /= 2) exchange(key, mask, (lane() & mask) == 0);
  }
};

// ---- one tile -------------------------------------------------------------------------------------------------------

template <class T>
struct Search {
  Rows<T> queries, bank;
  const int32_t* exclude;  // may be null
  const Key* bound;        // [queries]: only keys below; null in the first pass
  Key* found;              // [spans, queries, 32 R]
  int64_t span;            // bank rows of a block
  int keep;                // keys that matter of a list: the threshold is the last of them
};

constexpr int kScoreStride = kTileRows + 4;

/// What a block keeps in shared memory for its queries.
template <int R>
struct Lists {
  Shared<Key> keys;         // [rows, 32 R]; a slot is touched by one lane alone
  Shared<float> threshold;  // [rows]
  Shared<float> scores;     // [rows, kScoreStride]: of the current tile, each warp its own rows

  /// Warp: its rows [row, row + rows) of the tile whose scores are staged, bank rows from `first` on below `end`.
  template <class T>
  DEVICE void select(const Search<T>& search, int64_t query0, int row, int rows, int64_t first, int64_t end) const {
    for (int r = row; r < row + rows; ++r) {
      const int64_t query = query0 + r;
      if (query >= search.queries.end) break;
      const int32_t excluded = search.exclude ? search.exclude[query] : -1;
      const Key bound = search.bound ? search.bound[query] : ~Key{0};
      for (int half = 0; half < kTileRows; half += kWarp) {
        const int64_t index = first + half + lane();
        const float score = scores[r * kScoreStride + half + lane()], least = threshold[r];
        const Key key = key_of(score, index);
        const bool take = score > least && index < end && index != excluded && key < bound;
        if (!warp_any(take)) continue;
        Best<R> best;
        for (int j = 0; j < R; ++j) best.v[j] = keys[(r * R + j) * kWarp + lane()];
        best.insert_all(key, take);
        for (int j = 0; j < R; ++j) keys[(r * R + j) * kWarp + lane()] = best.v[j];
        const float last = score_of(best.at(search.keep - 1));
        sync_warp();  // all have read the old one
        if (lane() == 0) threshold[r] = last;
        sync_warp();
      }
    }
  }

  /// Nothing is above the threshold of a row without a query.
  DEVICE void start(int64_t queries) const {
    for (int i = thread(); i < kTileRows * R * kWarp; i += block_threads()) keys[i] = 0;
    for (int i = thread(); i < kTileRows; i += block_threads()) threshold[i] = i < queries ? -kInfinity : kInfinity;
  }
  template <class T>
  DEVICE void finish(const Search<T>& search, int64_t query0) const {
    Key* to = search.found + (block().y * search.queries.end + query0) * R * kWarp;
    const int64_t count = min(int64_t{kTileRows}, search.queries.end - query0) * R * kWarp;
    for (int i = thread(); i < count; i += block_threads()) to[i] = keys[i];
  }
};

constexpr int kListBytes(int r) { return kTileRows * (r * kWarp * 8 + 4 + kScoreStride * 4); }
template <int R>
DEVICE Lists<R> lists_at(int offset) {
  constexpr int kKeys = kTileRows * R * kWarp;
  return {dynamic_shared<Key>("keys", offset, kKeys), dynamic_shared<float>("threshold", offset + kKeys * 8, kTileRows),
          dynamic_shared<float>("scores", offset + kKeys * 8 + kTileRows * 4, kTileRows * kScoreStride)};
}

// ---- tiles of a span ------------------------------------------------------------------------------------------------

/// Runs multiply(chunk of the columns, queries, bank rows, depth) over the chunks of every tile of a block's span,
/// double-buffered, and after each tile use(first, end). Tiles are a block's 64 queries by 64 bank rows. kResident: the
/// queries' columns that stay in shared memory, all of them; 0: they pass through it chunk by chunk with the bank.
/// Shared memory: two chunks of the bank, then the queries.
template <int kDepth, int kStride, int kResident, class S, class T, class Multiply, class Use>
DEVICE void stream(const Search<T>& search, const Shared<S>& stages, int64_t query0, Multiply multiply, Use use) {
  constexpr int kChunk = kTileRows * kStride, kQueries = kTileRows * (kResident + kStride - kDepth);
  const int64_t first = block().y * search.span, end = min(first + search.span, search.bank.end);
  const int chunks = static_cast<int>(ceil_div(search.bank.dim, kDepth));
  const int64_t total = ceil_div(end - first, kTileRows) * chunks;
  const Rows<T> bank = search.bank.until(end);
  const auto queries_at = [&](int64_t i) {
    return kResident > 0 ? stages.slice(2 * kChunk, kQueries)
                         : stages.slice((2 + static_cast<int>(i % 2)) * kChunk, kChunk);
  };
  const auto bank_at = [&](int64_t i) { return stages.slice(static_cast<int>(i % 2) * kChunk, kChunk); };
  const auto stage = [&](int64_t i) {
    const int64_t column = i % chunks * kDepth;
    if (kResident == 0) stage_rows<kTileRows, kDepth, kStride>(queries_at(i), search.queries, query0, column);
    stage_rows<kTileRows, kDepth, kStride>(bank_at(i), bank, first + i / chunks * kTileRows, column);
    copy_commit();
  };
  if constexpr (kResident > 0)
    stage_rows<kTileRows, kResident, kResident + kStride - kDepth>(queries_at(0), search.queries, query0, 0);
  if (total > 0) stage(0);
  for (int64_t i = 0; i < total; ++i) {
    copy_wait();
    sync_block();  // chunk i has arrived for all, and nobody reads the other buffer any more
    if (i + 1 < total) stage(i + 1);
    const int chunk = static_cast<int>(i % chunks);
    multiply(chunk, queries_at(i), bank_at(i),
             static_cast<int>(min(int64_t{kDepth}, search.bank.dim - chunk * kDepth)));
    if (chunk == chunks - 1) use(first + i / chunks * kTileRows, end);
  }
  sync_block();
}

/// Bytes: the bank once from memory where it does not fit the caches, else once per 64 queries from them; queries;
/// lists of 32 R keys per query and span. FLOPs: 2 M N D, the floor wherever M > 32: 256 queries of 128 against 65,536
/// rows are 4.3 GFLOP. Nothing of size M x N is written.
template <int R>
KERNEL_BOUNDS(FloatTile::kThreads, 2)
void top_k_float_kernel(Search<float> search) {
  constexpr int kStages = 4 * kTileRows * FloatTile::kStride;
  const auto stages = dynamic_shared<float>("stages", 0, kStages);
  const Lists<R> lists = lists_at<R>(kStages * 4);
  const int64_t query0 = block().x * int64_t{kTileRows};
  lists.start(search.queries.end - query0);
  FloatTile tile;
  stream<FloatTile::kDepth, FloatTile::kStride, 0>(
      search, stages, query0,
      [&](int, const Shared<float>& a, const Shared<float>& b, int depth) { tile.multiply(a, b, depth); },
      [&](int64_t first, int64_t end) {
        bool any = false;
        for (int i = 0; i < 4; ++i) {
          const float least = lists.threshold[FloatTile::row(i)];
          for (int j = 0; j < 4; ++j) any = any || tile.s[i][j] > least;
        }
        if (warp_any(any)) {
          for (int i = 0; i < 4; ++i)
            for (int j = 0; j < 4; ++j)
              lists.scores[FloatTile::row(i) * kScoreStride + FloatTile::column(j)] = tile.s[i][j];
          sync_warp();
          lists.select(search, query0, warp() * FloatTile::kWarpRows, FloatTile::kWarpRows, first, end);
          sync_warp();
        }
        tile = {};
      });
  lists.finish(search, query0);
}

/// Columns of the 16-bit kernel's queries that stay in shared memory: rows of up to that many. The bank's tiles then
/// are all that a block reads.
constexpr int kResidentColumns = 128;
constexpr int kHalfDepth = 64, kHalfStride = kHalfDepth + 8;
CSML_HD constexpr int kHalfStages(bool resident) {
  return 2 * kTileRows * (kHalfStride + (resident ? (kResidentColumns + 8) / 2 : kHalfStride));
}

/// The same for bf16 and f16: 4 warps with 16 queries each.
template <int R, bool kIsResident, class T>
KERNEL_BOUNDS(128, 2)
void top_k_half_kernel(Search<T> search) {
  constexpr int kDepth = kHalfDepth, kStride = kHalfStride, kStages = kHalfStages(kIsResident);
  constexpr int kResident = kIsResident ? kResidentColumns : 0, kQueryStride = kIsResident ? kResident + 8 : kStride;
  const auto stages = dynamic_shared<T>("stages", 0, kStages);
  const Lists<R> lists = lists_at<R>(kStages * 2);
  const int64_t query0 = block().x * int64_t{kTileRows};
  const int row = warp() * 16, g = lane() / 4, t = lane() % 4;
  lists.start(search.queries.end - query0);
  FragmentD s[kTileRows / 8] = {};
  stream<kDepth, kStride, kResident>(
      search, stages, query0,
      [&](int chunk, const Shared<T>& a, const Shared<T>& b, int depth) {
        for (int k = 0; k < depth; k += 16) {
          const FragmentA<T> x = load_a(a, kQueryStride, row, kIsResident ? chunk * kDepth + k : k);
          CSML_UNROLL
          for (int j = 0; j < kTileRows / 8; j += 2) {
            FragmentB<T> y[2];
            load_b_rows(y, b, kStride, 8 * j, k);
            mma(s[j], x, y[0]);
            mma(s[j + 1], x, y[1]);
          }
        }
      },
      [&](int64_t first, int64_t end) {
        const float low = lists.threshold[row + g], high = lists.threshold[row + g + 8];
        bool any = false;
        for (const FragmentD& d : s) any = any || d.v[0] > low || d.v[1] > low || d.v[2] > high || d.v[3] > high;
        if (warp_any(any)) {
          for (int j = 0; j < kTileRows / 8; ++j)
            for (int e = 0; e < 4; ++e)
              lists.scores[(row + g + e / 2 * 8) * kScoreStride + 8 * j + 2 * t + e % 2] = s[j].v[e];
          sync_warp();
          lists.select(search, query0, row, 16, first, end);
          sync_warp();
        }
        for (FragmentD& d : s) d = {};
      });
  lists.finish(search, query0);
}

constexpr int kMergeWarps = 4, kStaged = 32;  // lists of a query that are read together: reads wait on memory

/// The lists of all spans become ranks [done, done + 32 R) of the result; a block to a query, its warps share the lists
/// and the first joins theirs. bound[query]: the last key. Bytes: reads the lists, 256 R for each span and query.
template <int R>
KERNEL_BOUNDS(kMergeWarps* kWarp, 4)
void top_k_merge_kernel(const Key* found, Key* bound, float* scores, int32_t* index, int64_t queries, int spans,
                        int done, int k) {
  constexpr int kSize = R * kWarp;  // of a list
  SHARED(Key, lists, kStaged * kSize);
  const int64_t query = block().x;
  Best<R> best{};
  const auto insert = [&](int list) {
    for (int j = 0; j < R; ++j) {
      const Key key = lists[list * kSize + j * kWarp + lane()];
      best.insert_all(key, key > best.at(kSize - 1));
    }
  };
  for (int first = 0; first < spans; first += kStaged) {
    CSML_UNROLL
    for (int i = 0; i < kStaged * kSize; i += kMergeWarps * kWarp) {
      const int at = i + thread(), span = first + at / kSize;
      lists[at] = span < spans ? found[(span * queries + query) * kSize + at % kSize] : 0;
    }
    sync_block();
    for (int list = warp(); list < kStaged && first + list < spans; list += kMergeWarps) insert(list);
    sync_block();
  }
  for (int j = 0; j < R; ++j) lists[(warp() * R + j) * kWarp + lane()] = best.v[j];
  sync_block();
  if (warp() != 0) return;
  for (int list = 1; list < kMergeWarps; ++list) insert(list);
  for (int j = 0; j < R; ++j) {
    const int rank = done + j * kWarp + lane();
    if (rank < k) {
      scores[query * k + rank] = score_of(best.v[j]);
      index[query * k + rank] = index_of(best.v[j]);
    }
  }
  const Key last = best.at(kSize - 1);
  if (lane() == 0) bound[query] = last;
}

template <int R, class T>
void search_bank(Context& context, const Backend::TopK& args) {
  const int64_t queries = args.queries.shape[0], length = args.bank.shape[0], dim = args.bank.shape[1];
  // Spans by shape alone: about 512 blocks, none for less than 8 tiles.
  const int64_t tiles = ceil_div(queries, kTileRows);
  const int64_t wanted = max(min(ceil_div(512, tiles), length / (8 * kTileRows)), int64_t{1});
  const int64_t span = max(ceil_div(ceil_div(length, wanted), kTileRows), int64_t{1}) * kTileRows;
  const int64_t spans = max(ceil_div(length, span), int64_t{1});
  Key* found = context.scratch<Key>((spans * R * kWarp + 1) * queries);
  Key* bound = found + spans * R * kWarp * queries;
  for (int done = 0; done < args.k; done += R * kWarp) {
    const Search<T> search{Rows<T>(args.queries.as<T>(), queries, dim),
                           Rows<T>(args.bank.as<T>(), length, dim),
                           args.exclude ? args.exclude.as<int32_t>() : nullptr,
                           done > 0 ? bound : nullptr,
                           found,
                           span,
                           min(args.k - done, R * kWarp)};
    const Grid grid{tiles, spans};
    if constexpr (std::is_same_v<T, float>) {
      launch(context,
             {.name = "top_k",
              .grid = grid,
              .threads = FloatTile::kThreads,
              .shared_bytes = 4 * kTileRows * FloatTile::kStride * 4 + kListBytes(R)},
             top_k_float_kernel<R>, search);
    } else {
      const bool resident = dim <= kResidentColumns;
      const size_t shared = static_cast<size_t>(kHalfStages(resident)) * sizeof(T) + kListBytes(R);
      launch(context, {.name = "top_k", .grid = grid, .threads = 128, .shared_bytes = shared},
             resident ? top_k_half_kernel<R, true, T> : top_k_half_kernel<R, false, T>, search);
    }
    launch(context, {.name = "top_k merge", .grid = {queries}, .threads = kMergeWarps * kWarp}, top_k_merge_kernel<R>,
           found, bound, args.scores.as<float>(), args.index.as<int32_t>(), queries, static_cast<int>(spans), done,
           args.k);
  }
}

}  // namespace

void top_k(Context& context, const Backend::TopK& args) {
  const Shape &queries = args.queries.shape, &bank = args.bank.shape;
  CHECK(queries.rank() == 2 && bank.rank() == 2 && queries[1] == bank[1] && queries[1] > 0,
        "top_k: queries {} do not fit bank {}", queries.text(), bank.text());
  CHECK(args.k >= 1, "top_k: k is {}, must be at least 1", args.k);
  CHECK(bank[0] <= std::numeric_limits<int32_t>::max(), "top_k: {} bank rows do not fit a 32-bit index", bank[0]);
  CHECK(args.scores.shape == (Shape{queries[0], args.k}) && args.index.shape == (Shape{queries[0], args.k}),
        "top_k: scores {} and index {} must be [{}, {}]", args.scores.shape.text(), args.index.shape.text(), queries[0],
        args.k);
  CHECK(!args.exclude || args.exclude.shape == Shape{queries[0]}, "top_k: exclude is {}, must be [{}]",
        args.exclude.shape.text(), queries[0]);
  if (queries[0] == 0) return;
  with_float_type(args.queries.dtype, [&]<class T>(T) {
    if (args.k <= kWarp)
      search_bank<1, T>(context, args);
    else
      search_bank<2, T>(context, args);
  });
}

}  // namespace csml::cuda
