#include <algorithm>
#include <bit>
#include <functional>
#include <limits>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/onednn.h"
#include "kernels/cpu/scratch.h"

namespace csml::cpu {

namespace {

constexpr int64_t kTile = 128;   // queries of one task, at least: few give many tasks; with many queries two or four
                                 // times as many, which packs and reads the bank less often
constexpr int64_t kBlock = 512;  // bank rows of one product: its scores stay in the second-level cache
constexpr int64_t kLook = 64;    // scores compared with the threshold at once
constexpr int64_t kStep = 32;    // scores taken at once

/// A score and its index as one integer: greater is better, that is a higher score or an equal score of lower index.
/// All keys differ, so what is kept does not depend on how they are sorted.
using Key = uint64_t;

inline Key key_of(float score, int64_t index) {
  const uint32_t bits = std::bit_cast<uint32_t>(score + 0.f);              // -0 becomes 0: they are equal scores
  const uint32_t order = bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);  // ascending as the score
  return static_cast<Key>(order) << 32 | (0xffffffffu - static_cast<uint32_t>(index));
}

inline float score_of(Key key) {
  const uint32_t order = static_cast<uint32_t>(key >> 32);
  return std::bit_cast<float>(order ^ (order >> 31 ? 0x80000000u : 0xffffffffu));
}

inline int32_t index_of(Key key) { return static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(key)); }

/// The k best candidates seen so far: up to 2 k unordered keys and a threshold, the k-th best score at the last cut to
/// k. A later row must be above it: rows come by ascending index, so an equal one loses.
class Best {
 public:
  static int64_t room(int k) { return 2 * static_cast<int64_t>(k) + kStep; }

  void start(Key* keys, int k) {
    keys_ = keys;
    count_ = 0;
    k_ = k;
    threshold_ = -std::numeric_limits<float>::infinity();
  }

  /// Takes scores[0, n) of bank rows first, first + 1, ... except row `exclude`. NaN and -infinity are never taken.
  void take(const float* scores, int64_t n, int64_t first, int64_t exclude) {
    int64_t i = 0;
    for (; i + kLook <= n; i += kLook) {  // most stretches hold nothing above the threshold
      if (!above(scores + i, kLook)) continue;
      for (int64_t j = i; j < i + kLook; j += kStep)
        take_each(above(scores + j, kStep), scores + j, first + j, exclude);
    }
    for (; i < n; i += kStep) take_each(above(scores + i, std::min(n - i, kStep)), scores + i, first + i, exclude);
  }

  /// Writes the k best, in order; missing ones as score -infinity, index -1.
  void finish(float* scores, int32_t* index) {
    if (count_ > k_) cut();
    std::sort(keys_, keys_ + count_, std::greater<>());
    for (int64_t i = 0; i < k_; ++i) {
      scores[i] = i < count_ ? score_of(keys_[i]) : -std::numeric_limits<float>::infinity();
      index[i] = i < count_ ? index_of(keys_[i]) : -1;
    }
  }

 private:
  /// Bit i mod 32 is set where a scores[i] is above the threshold.
  uint32_t above(const float* scores, int64_t n) const {
    const float threshold = threshold_;
    uint32_t bits = 0;
#pragma omp simd reduction(| : bits)
    for (int64_t i = 0; i < n; ++i) bits |= (scores[i] > threshold ? 1u : 0u) << (i & 31);
    return bits;
  }

  void take_each(uint32_t bits, const float* scores, int64_t first, int64_t exclude) {
    for (; bits; bits &= bits - 1) {
      const int64_t i = std::countr_zero(bits);
      if (first + i != exclude) keys_[count_++] = key_of(scores[i], first + i);
    }
    if (count_ >= 2 * static_cast<int64_t>(k_)) cut();
  }

  void cut() {
    std::nth_element(keys_, keys_ + k_ - 1, keys_ + count_, std::greater<>());
    count_ = k_;
    threshold_ = score_of(keys_[k_ - 1]);
  }

  Key* keys_ = nullptr;
  int64_t count_ = 0;
  int k_ = 0;
  float threshold_ = 0;
};

}  // namespace

void top_k(const Backend::TopK& args) {
  const Shape &queries = args.queries.shape, &bank = args.bank.shape;
  CHECK(queries.rank() == 2 && bank.rank() == 2 && queries[1] == bank[1] && queries[1] > 0,
        "top_k: queries {} do not fit bank {}", queries.text(), bank.text());
  CHECK(args.k >= 1, "top_k: k is {}, must be at least 1", args.k);
  const int64_t rows = queries[0], dim = queries[1], length = bank[0];
  const int k = args.k;
  CHECK(length <= std::numeric_limits<int32_t>::max(), "top_k: {} bank rows do not fit a 32-bit index", length);
  CHECK(args.scores.shape == (Shape{rows, k}) && args.index.shape == (Shape{rows, k}),
        "top_k: scores {} and index {} must be [{}, {}]", args.scores.shape.text(), args.index.shape.text(), rows, k);
  CHECK(!args.exclude || args.exclude.shape == Shape{rows}, "top_k: exclude is {}, must be [{}]",
        args.exclude.shape.text(), rows);
  const float *query = args.queries.as<float>(), *bank_rows = args.bank.as<float>();
  const int32_t* exclude = args.exclude ? args.exclude.as<int32_t>() : nullptr;
  float* scores = args.scores.as<float>();
  int32_t* index = args.index.as<int32_t>();

  // Tiles and blocks are cut evenly: a product of one row or column would go another way and round otherwise, and
  // equal bank rows would not tie. A team even for one tile, so that each product runs on one thread.
  const int64_t tile_rows = kTile * (rows < 16 * kTile ? 1 : rows < 64 * kTile ? 2 : 4);
  const int64_t tiles = (rows + tile_rows - 1) / tile_rows, blocks = (length + kBlock - 1) / kBlock;
#pragma omp parallel for schedule(static)
  for (int64_t tile = 0; tile < tiles; ++tile) {
    thread_local Scratch product_scratch, key_scratch, best_scratch;
    float* product = product_scratch.get<float>(tile_rows * kBlock);
    Key* keys = key_scratch.get<Key>(tile_rows * Best::room(k));
    Best* best = best_scratch.get<Best>(tile_rows);
    const int64_t row = rows * tile / tiles, m = rows * (tile + 1) / tiles - row;
    for (int64_t i = 0; i < m; ++i) best[i].start(keys + i * Best::room(k), k);
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t first = length * block / blocks, n = length * (block + 1) / blocks - first;
      sgemm(false, true, m, n, dim, 1.f, query + row * dim, dim, bank_rows + first * dim, dim, 0.f, product, n);
      for (int64_t i = 0; i < m; ++i) best[i].take(product + i * n, n, first, exclude ? exclude[row + i] : -1);
    }
    for (int64_t i = 0; i < m; ++i) best[i].finish(scores + (row + i) * k, index + (row + i) * k);
  }
}

}  // namespace csml::cpu
