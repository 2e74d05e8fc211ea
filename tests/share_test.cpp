// How processes share a batch and a data set: the layout of the global batch and what it refuses, the permutation of
// the keys, and loaders of several ranks, which together load the bytes that one loads.
#include <algorithm>
#include <numeric>

#include "csml/method/batch_layout.h"
#include "data/loader.h"
#include "data/shuffle.h"

#include "tests/files.h"

using namespace csml;

namespace {

/// One of `size` processes that say nothing to each other.
class Pretended final : public Comm {
 public:
  Pretended(int rank, int size) : rank_(rank), size_(size) {}
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  void all_reduce_mean(const Tensor&) override {}
  void all_reduce_sum(const Tensor&) override {}
  void all_reduce_max(const Tensor&) override {}
  void all_reduce_min(const Tensor&) override {}
  void all_gather(const Tensor&, const Tensor&) override {}
  void broadcast(const Tensor&, int) override {}
  void barrier() override {}
  void fork() override {}
  void join() override {}
  bool recordable() const override { return true; }
  void phase(const std::string&) override {}
  void abort(const std::string&, int) override {}

 private:
  int rank_, size_;
};

Config config_of(int batch, int group, int span) {
  Config c;
  c.train.batch_size = batch;
  c.method.bn_group_size = group;
  c.method.shuffle_span = span;
  return c;
}

std::vector<ViewSpec> csml_views() {
  AugmentConfig augment;
  augment.crop_size = 16;
  using Source = ViewSpec::Source;
  return {{Source::own, augment, 0},
          {Source::own, augment, 1, 0},
          {Source::neighbor, augment, 2},
          {Source::neighbor, augment, 3, 1}};
}

std::vector<Batch> epoch_of(const Dataset& data, LoaderOptions options, int64_t epoch) {
  options.seed = 5;
  Loader loader(data, csml_views(), options);
  auto table = std::make_shared<NeighborTable>();
  table->k = 2;
  for (int64_t i = 0; i < data.size(); ++i)
    for (int64_t j : {1, 2}) table->index.push_back(static_cast<int32_t>((i * 7 + j) % data.size()));
  loader.start_epoch(epoch, 0, table);
  std::vector<Batch> batches;
  for (Batch batch; loader.next(batch);) batches.push_back(batch);
  return batches;
}

LoaderOptions options_of(int workers, int batch, int rank, int ranks) {
  LoaderOptions o;
  o.workers = workers;
  o.batch_size = batch;
  o.rank = rank;
  o.ranks = ranks;
  return o;
}

/// Pixels and colour parameters of one view of one place.
std::string image_of(const Batch& batch, size_t view, size_t at) {
  const ViewBatch& v = batch.views[view];
  const size_t bytes = static_cast<size_t>(v.size) * static_cast<size_t>(v.size * v.channels);
  std::string text(reinterpret_cast<const char*>(v.images.data()) + at * bytes, bytes);
  return text.append(reinterpret_cast<const char*>(v.params.data() + at * ColorParams::kColumns),
                     ColorParams::kColumns * sizeof(float));
}

}  // namespace

TEST_CASE("the global batch lies on processes in whole batch-norm groups, or is refused") {
  const BatchLayout one = batch_layout(config_of(256, 32, 0), Comm::alone());
  CHECK(one.local == 256);
  CHECK(one.first == 0);
  CHECK(one.span == 256);
  CHECK_FALSE(one.loader_shuffles);
  const BatchLayout third = batch_layout(config_of(256, 32, 0), Pretended(3, 8));
  CHECK(third.local == 32);
  CHECK(third.first == 96);
  CHECK(third.loader_shuffles);  // over the whole batch
  CHECK_FALSE(batch_layout(config_of(256, 32, 64), Pretended(1, 4)).loader_shuffles);
  CHECK(batch_layout(config_of(96, 8, 32), Pretended(1, 2)).loader_shuffles);  // spans across the border at 48
  Config unshuffled = config_of(256, 32, 0);
  unshuffled.method.shuffle = false;
  CHECK_FALSE(batch_layout(unshuffled, Pretended(1, 4)).loader_shuffles);

  const auto refusal = [](const Config& c, int size) { return error_of([&] { batch_layout(c, Pretended(0, size)); }); };
  CHECK(contains(refusal(config_of(256, 32, 0), 16), "at most 8 processes"));
  CHECK(contains(refusal(config_of(256, 0, 0), 2), "at most 1 processes"));
  CHECK(contains(refusal(config_of(256, 0, 0), 2), "method.bn_sync"));
  CHECK(contains(refusal(config_of(100, 10, 0), 8), "does not divide by 8 processes"));
}

TEST_CASE("with method.bn_sync a batch-norm group is an equal part of some processes") {
  const auto layout = [](int batch, int group, int rank, int size) {
    Config c = config_of(batch, group, 0);
    c.method.bn_sync = true;
    return batch_layout(c, Pretended(rank, size));
  };
  CHECK(layout(256, 0, 3, 8).group_ranks == 8);
  CHECK(layout(256, 0, 3, 8).group == 256);
  CHECK(layout(256, 64, 3, 8).group_ranks == 2);
  CHECK(layout(256, 32, 3, 8).group_ranks == 1);  // groups that lie inside a process stay there
  CHECK(layout(256, 16, 3, 8).group_ranks == 1);
  CHECK(layout(256, 0, 0, 1).group_ranks == 1);
  CHECK(contains(error_of([&] { layout(96, 48, 0, 3); }), "whole processes' shares"));   // one and a half
  CHECK(contains(error_of([&] { layout(100, 40, 0, 5); }), "whole processes' shares"));  // not of the whole batch
}

TEST_CASE("the permutation of the keys stays in its spans and differs by step, number and span") {
  std::vector<std::vector<int32_t>> seen;
  for (const int64_t span : {1, 8, 24}) {
    for (const int64_t step : {0, 1})
      for (const uint32_t number : {0u, 1u}) {
        const std::vector<int32_t> p = shuffle_permutation(3, step, number, 48, span);
        std::vector<int32_t> sorted = p, all(48);
        std::iota(all.begin(), all.end(), 0);
        bool inside = true;
        for (size_t i = 0; i < p.size(); ++i) inside &= p[i] / span == static_cast<int64_t>(i) / span;
        CHECK(inside);
        std::sort(sorted.begin(), sorted.end());
        CHECK(sorted == all);
        if (span == 1) {
          CHECK(p == all);
        } else {
          CHECK(std::find(seen.begin(), seen.end(), p) == seen.end());
          seen.push_back(p);
          CHECK(std::vector<int32_t>(p.begin(), p.begin() + span) !=
                std::vector<int32_t>(all.begin(), all.begin() + span));
        }
      }
  }
  CHECK_THROWS_AS(shuffle_permutation(3, 0, 0, 48, 7), Error);
}

TEST_CASE("loaders of several ranks load what one loads, key views permuted over the global batch") {
  const auto data = open_dataset("synthetic:shapes?limit=52&size=16");
  constexpr int kGlobal = 12;
  for (const int64_t epoch : {0, 3}) {
    const std::vector<Batch> whole = epoch_of(*data, options_of(0, kGlobal, 0, 1), epoch);
    REQUIRE(whole.size() == 4);
    for (const int ranks : {1, 2, 3})
      for (const int64_t span : {0, 6, 12}) {
        for (int rank = 0; rank < ranks; ++rank) {
          LoaderOptions options = options_of(rank, kGlobal / ranks, rank, ranks);
          options.shuffle_span = span;
          const std::vector<Batch> part = epoch_of(*data, options, epoch);
          REQUIRE(part.size() == whole.size());
          int64_t wrong = 0;
          for (size_t b = 0; b < part.size(); ++b) {
            const int64_t step = epoch * 4 + static_cast<int64_t>(b);
            for (size_t at = 0; at < static_cast<size_t>(kGlobal / ranks); ++at) {
              const size_t place = static_cast<size_t>(rank * kGlobal / ranks) + at;
              wrong += part[b].samples[at] != whole[b].samples[place];
              wrong += part[b].neighbors[at] != whole[b].neighbors[place];
              for (size_t view = 0; view < 4; ++view) {
                size_t from = place;
                if (span > 0 && view % 2 == 1)
                  from = static_cast<size_t>(
                      shuffle_permutation(5, step, static_cast<uint32_t>(view / 2), kGlobal, span)[place]);
                wrong += image_of(part[b], view, at) != image_of(whole[b], view, from);
              }
            }
          }
          CHECK_MESSAGE(wrong == 0, cat("epoch {}, rank {} of {}, span {}", epoch, rank, ranks, span));
        }
      }
  }
}

TEST_CASE("evaluation loaders of several ranks load every image once, in one process's batches") {
  const auto data = open_dataset("synthetic:shapes?limit=50&size=16");
  const EvalTransform transform{.resize = 0, .size = 16};
  for (const int ranks : {1, 2, 3, 9}) {
    std::vector<int64_t> firsts;
    int64_t images = 0;
    for (int rank = 0; rank < ranks; ++rank) {
      EvalLoader loader(*data, transform, options_of(rank % 2, 8, rank, ranks));
      for (EvalBatch batch; loader.next(batch);) {
        CHECK(batch.first >= loader.share() * rank);
        CHECK(batch.first + batch.count <= loader.share() * (rank + 1));
        firsts.push_back(batch.first);
        images += batch.count;
      }
    }
    CHECK(images == 50);
    CHECK(firsts == std::vector<int64_t>{0, 8, 16, 24, 32, 40, 48});
  }
}
