// What batch norm and its gradient share: how x is cut, loads of rows, merging of partial sums, checks.
#pragma once

#include "kernels/cuda/launch.cuh"

namespace csml::cuda::norm {

constexpr int kThreads = 256;
constexpr int kRun = 8;  // rows a thread has in flight in the pass that reads x alone
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

inline Grid merge_grid(const Layout& v) { return {.x = ceil_div(v.channels, kMergeColumns)}; }

inline void check_like(const char* op, const char* name, const ConstView& v, const Shape& shape, DType type,
                       bool required) {
  CHECK(v || !required, "{}: {} is missing", op, name);
  CHECK(!v || (v.shape == shape && v.dtype == type), "{}: {} is {} {}, must be {} {}", op, name, name_of(v.dtype),
        v.shape.text(), name_of(type), shape.text());
}

/// Rows of a group.
inline int64_t rows_of(const char* op, const Shape& x, int groups) {
  CHECK(x.rank() >= 2, "{}: x must be [N, ..., C], got {}", op, x.text());
  CHECK(groups >= 1 && x[0] % groups == 0, "{}: {} rows cannot be cut into {} equal groups", op, x[0], groups);
  const int64_t channels = x[x.rank() - 1];
  return channels > 0 ? x.size() / channels / groups : 0;
}

inline int64_t channels_of(const Shape& x) { return x[x.rank() - 1]; }

}  // namespace csml::cuda::norm
