// Loaders: order, identity over workers, resume, processes that share a batch, unreadable images.
#include "data/loader.h"

#include "data/augment.h"
#include "data/dataset.h"

#include "tests/files.h"

#include <chrono>
#include <map>
#include <set>
#include <thread>

using namespace csml;
namespace fs = std::filesystem;

namespace {

/// A picture whose pixels differ from place to place.
std::string noise_ppm(int height, int width, uint32_t seed) {
  std::string s = cat("P6\n{} {}\n255\n", width, height);
  for (int i = 0; i < height * width * 3; ++i)
    s += static_cast<char>((static_cast<uint32_t>(i) + seed) * 2654435761u >> 24);
  return s;
}

AugmentConfig small_augment(int size = 16) {
  AugmentConfig config;
  config.crop_size = size;
  return config;
}

std::vector<ViewSpec> five_views() {
  using Source = ViewSpec::Source;
  return {{Source::own, small_augment(), 0},
          {Source::own, small_augment(), 1},
          {Source::neighbor, small_augment(), 2},
          {Source::neighbor, small_augment(), 3},
          {Source::own, small_augment(12), 4}};
}

std::shared_ptr<NeighborTable> table_of(int64_t n, int k) {
  auto table = std::make_shared<NeighborTable>();
  table->k = k;
  for (int64_t i = 0; i < n; ++i)
    for (int j = 0; j < k; ++j) table->index.push_back(static_cast<int32_t>((i * 3 + j + 1) % n));
  return table;
}

bool same(const Batch& a, const Batch& b) {
  if (a.epoch != b.epoch || a.index != b.index || a.samples != b.samples || a.neighbors != b.neighbors ||
      a.labels != b.labels || a.views.size() != b.views.size())
    return false;
  for (size_t v = 0; v < a.views.size(); ++v)
    if (a.views[v].images != b.views[v].images || a.views[v].params != b.views[v].params) return false;
  return true;
}

std::vector<Batch> run_epochs(const Dataset& d, int workers, std::vector<int64_t> epochs, int64_t first = 0,
                              double max_bad_share = 0.5, int batch_size = 12) {
  LoaderOptions options;
  options.seed = 9;
  options.workers = workers;
  options.batch_size = batch_size;
  options.max_bad_share = max_bad_share;
  Loader loader(d, five_views(), options);
  std::vector<Batch> batches;
  for (int64_t epoch : epochs) {
    loader.start_epoch(epoch, first, table_of(d.size(), 3));
    for (Batch batch; loader.next(batch);) batches.push_back(batch);
  }
  return batches;
}

}  // namespace

TEST_CASE("loader: the same batches for any number of workers") {
  const auto d = open_dataset("synthetic:shapes?limit=100");
  const auto want = run_epochs(*d, 0, {0, 1});
  REQUIRE(want.size() == 16);  // the last four images of an epoch are dropped
  for (int workers : {1, 2, 5}) {
    const auto got = run_epochs(*d, workers, {0, 1});
    REQUIRE(got.size() == want.size());
    for (size_t b = 0; b < want.size(); ++b) CHECK_MESSAGE(same(got[b], want[b]), workers, " workers, batch ", b);
  }
  CHECK(want[0].samples != want[8].samples);  // another order in another epoch
  CHECK(want[0].views[0].images != want[0].views[1].images);
}

TEST_CASE("loader: an epoch visits every image once, neighbours come from the table") {
  const auto d = open_dataset("synthetic:shapes?limit=96");
  const auto table = table_of(96, 3);
  std::set<int64_t> seen;
  std::map<int64_t, int> columns;
  for (const Batch& batch : run_epochs(*d, 2, {4}))
    for (size_t at = 0; at < batch.samples.size(); ++at) {
      const int64_t i = batch.samples[at];
      CHECK(seen.insert(i).second);
      CHECK(batch.labels[at] == d->label(i));
      const int32_t* row = &table->index[static_cast<size_t>(i) * 3];
      const auto* found = std::find(row, row + 3, batch.neighbors[at]);
      CHECK(found != row + 3);
      ++columns[found - row];
    }
  CHECK(seen.size() == 96);
  CHECK(columns.size() == 3);
}

TEST_CASE("loader: a view is what its draws say") {
  const auto d = open_dataset("synthetic:shapes?limit=24");
  const auto views = five_views();
  const auto table = table_of(24, 3);
  const Batch batch = run_epochs(*d, 2, {7})[1];
  ResizeScratch scratch;
  for (size_t v = 0; v < views.size(); ++v)
    for (size_t at = 0; at < batch.samples.size(); ++at) {
      const auto sample = static_cast<uint64_t>(batch.samples[at]);
      const int64_t from = views[v].source == ViewSpec::Source::own ? batch.samples[at] : batch.neighbors[at];
      const Image image = d->load(from);
      const CropBox crop = draw_crop(views[v].augment, 32, 32, 9, 7, sample, views[v].number);
      ColorParams color = draw_color(views[v].augment, 9, 7, sample, views[v].number);
      color.flip = crop.flip;
      const auto size = static_cast<size_t>(views[v].augment.crop_size);
      std::vector<uint8_t> want(size * size * 3);
      resize(image.view().crop(crop.y, crop.x, crop.height, crop.width), static_cast<int>(size), static_cast<int>(size),
             Filter::bilinear, want.data(), scratch);
      CHECK(std::memcmp(want.data(), &batch.views[v].images[at * want.size()], want.size()) == 0);
      CHECK(std::memcmp(&color, &batch.views[v].params[at * ColorParams::kColumns], sizeof color) == 0);
    }
}

TEST_CASE("loader: resume in the middle of an epoch, restart drops what is under way") {
  const auto d = open_dataset("synthetic:shapes?limit=100");
  const auto whole = run_epochs(*d, 0, {3});
  const auto tail = run_epochs(*d, 2, {3}, 5);
  REQUIRE(tail.size() == whole.size() - 5);
  for (size_t b = 0; b < tail.size(); ++b) CHECK(same(tail[b], whole[b + 5]));

  LoaderOptions options;
  options.seed = 9;
  options.batch_size = 12;
  Loader loader(*d, five_views(), options);
  Batch batch;
  CHECK(!loader.next(batch));  // nothing before an epoch is started
  for (int round = 0; round < 20; ++round) {
    loader.start_epoch(1 + round, 0, table_of(100, 3));
    REQUIRE(loader.next(batch));
  }
  loader.start_epoch(3, 0, table_of(100, 3));
  for (const Batch& want : whole) {
    REQUIRE(loader.next(batch));
    CHECK(same(batch, want));
    CHECK(batch.wait_seconds >= 0);
  }
  CHECK(!loader.next(batch));
  CHECK(!loader.next(batch));
}

TEST_CASE("loader: the views of one sample are those that any batch shows") {
  const auto d = open_dataset("synthetic:shapes?limit=100");
  LoaderOptions options;
  options.seed = 9;
  options.workers = 0;
  options.batch_size = 1;
  Loader loader(*d, five_views(), options);
  for (const Batch& batch : run_epochs(*d, 2, {3})) {
    const size_t at = static_cast<size_t>(batch.index);  // another place in every batch
    const Batch alone = loader.sample_views(3, batch.samples[at], table_of(100, 3));
    CHECK(alone.samples[0] == batch.samples[at]);
    CHECK(alone.neighbors[0] == batch.neighbors[at]);
    for (size_t v = 0; v < batch.views.size(); ++v) {
      const size_t bytes = alone.views[v].images.size();
      CHECK(std::memcmp(alone.views[v].images.data(), batch.views[v].images.data() + at * bytes, bytes) == 0);
      CHECK(std::memcmp(alone.views[v].params.data(), batch.views[v].params.data() + at * ColorParams::kColumns,
                        sizeof(ColorParams)) == 0);
    }
  }
}

TEST_CASE("loader: processes share a global batch") {
  const auto d = open_dataset("synthetic:shapes?limit=100");
  LoaderOptions one;
  one.batch_size = 24;
  Loader whole(*d, {{ViewSpec::Source::own, small_augment(), 0}}, one);
  whole.start_epoch(2);
  Batch want;
  REQUIRE(whole.next(want));
  REQUIRE(whole.next(want));
  std::vector<int64_t> samples;
  for (int rank = 0; rank < 2; ++rank) {
    LoaderOptions half = one;
    half.batch_size = 12;
    half.rank = rank;
    half.ranks = 2;
    Loader loader(*d, {{ViewSpec::Source::own, small_augment(), 0}}, half);
    CHECK(loader.batches_per_epoch() == whole.batches_per_epoch());
    loader.start_epoch(2, 1);
    Batch batch;
    REQUIRE(loader.next(batch));
    samples.insert(samples.end(), batch.samples.begin(), batch.samples.end());
  }
  CHECK(samples == want.samples);
}

TEST_CASE("loader: what cannot work is refused") {
  const auto d = open_dataset("synthetic:shapes?limit=20");
  LoaderOptions options;
  options.batch_size = 21;
  CHECK(contains(error_of([&] { Loader(*d, five_views(), options); }), "do not fill a batch"));
  options.batch_size = 4;
  Loader loader(*d, five_views(), options);
  CHECK(contains(error_of([&] { loader.start_epoch(0); }), "neighbour table"));
  auto table = table_of(20, 3);
  table->index[7] = 20;
  CHECK(contains(error_of([&] { loader.start_epoch(0, 0, table); }), "neighbour 20"));
  auto views = five_views();
  views[0].augment.channels = 1;
  CHECK(contains(error_of([&] { Loader(*d, views, options); }), "channels"));
}

TEST_CASE("loader: unreadable images are replaced alike for any number of workers, named once, and bounded") {
  const Folder folder;
  for (int i = 0; i < 40; ++i)
    spill(folder.path / cat("{:02}.ppm", i), i % 8 == 5 ? "broken" : noise_ppm(20 + i, 30, static_cast<uint32_t>(i)));
  fs::create_symlink(folder.path / "40.ppm", folder.path / "41.ppm");
  spill(folder.path / "40.ppm", noise_ppm(9, 9, 1));
  const auto d = open_dataset("folder:" + folder.path.string());
  REQUIRE(d->size() == 42);
  fs::remove(folder.path / "40.ppm");  // disappears after the listing, and 41.ppm with it
  const auto want = run_epochs(*d, 0, {0, 1});
  for (int workers : {1, 3}) {
    const auto got = run_epochs(*d, workers, {0, 1});
    REQUIRE(got.size() == want.size());
    for (size_t b = 0; b < want.size(); ++b) CHECK_MESSAGE(same(got[b], want[b]), workers, " workers, batch ", b);
  }
  const std::set<int64_t> bad = {5, 13, 21, 29, 37, 40, 41};
  for (const Batch& batch : want)
    for (size_t at = 0; at < batch.samples.size(); ++at) {
      CHECK(bad.count(batch.samples[at]) == 0);
      CHECK(bad.count(batch.neighbors[at]) == 0);
    }

  std::map<std::string, int> named;
  LoaderOptions options;
  options.batch_size = 10;
  options.max_bad_share = 0.2;
  options.on_bad_image = [&](const std::string& path, const std::string& reason) {
    ++named[fs::path(path).filename().string()];
    if (path.ends_with("05.ppm")) CHECK(reason == "not an image: it begins with \"broken\"");
    if (path.ends_with("40.ppm")) CHECK(contains(reason, "No such file"));
  };
  {
    Loader loader(*d, {{ViewSpec::Source::own, small_augment(), 0}}, options);
    Batch batch;
    for (int epoch = 0; epoch < 4; ++epoch) {
      loader.start_epoch(epoch);
      while (loader.next(batch)) {}
    }
    CHECK(loader.bad_images() == 7);
    CHECK(named.size() == 7);
    for (const auto& [name, count] : named) CHECK_MESSAGE(count == 1, name);
  }
  options.max_bad_share = 0.1;  // 4.2 images
  for (int workers : {0, 2}) {
    options.workers = workers;
    Loader loader(*d, {{ViewSpec::Source::own, small_augment(), 0}}, options);
    Batch batch;
    std::string stopped;
    for (int epoch = 0; epoch < 4 && stopped.empty(); ++epoch)
      stopped = error_of([&] {
        loader.start_epoch(epoch);
        while (loader.next(batch)) {}
      });
    CHECK(contains(stopped, "5 of 42 images cannot be read, more than data.max_bad_share = 0.1 allows"));
    CHECK(!error_of([&] { loader.next(batch); }).empty());
  }
}

TEST_CASE("loader: a callback's exception reaches the caller") {
  const Folder folder;
  for (int i = 0; i < 8; ++i) spill(folder.path / cat("{}.ppm", i), i == 3 ? "broken" : ppm(8, 8, 1));
  const auto d = open_dataset(folder.path.string());
  LoaderOptions options;
  options.batch_size = 8;
  options.max_bad_share = 1;
  options.on_bad_image = [](const std::string&, const std::string&) { throw Error("the disk is full"); };
  Loader loader(*d, {{ViewSpec::Source::own, small_augment(), 0}}, options);
  loader.start_epoch(0);
  Batch batch;
  CHECK(contains(error_of([&] { loader.next(batch); }), "the disk is full"));
}

TEST_CASE("evaluation: of several failures the first in order is thrown, after the batches before it") {
  /// Images of 4 x 4 pixels, but for some of 5 x 5, of which the first takes its time.
  class Mixed final : public Dataset {
   public:
    Mixed() { labels_.assign(40, -1); }
    std::string name(int64_t i) const override { return cat("image {}", i); }
    uint64_t fingerprint() const override { return 0; }
    bool in_memory() const override { return true; }
    ImageView view(int64_t i, LoadScratch& scratch, const ChooseRegion&) const override {
      const int side = i == 9 || i == 10 || i == 12 || i == 31 ? 5 : 4;
      if (i == 9) std::this_thread::sleep_for(std::chrono::milliseconds(50));
      scratch.decoded.reset(side, side, 3);
      return scratch.decoded.view();
    }
    std::string pixels_text() const override { return "mixed"; }

   private:
    void select(const std::vector<int64_t>&) override {}
  };
  const Mixed d;
  for (int workers : {0, 1, 4}) {
    LoaderOptions options;
    options.workers = workers;
    options.batch_size = 8;
    EvalLoader loader(d, {0, 4, Filter::bilinear}, options);
    for (int round = 0; round < 2; ++round) {
      EvalBatch batch;
      REQUIRE(loader.next(batch));
      CHECK(batch.first == 0);
      for (int again = 0; again < 2; ++again)
        CHECK(error_of([&] { loader.next(batch); }).starts_with("image 9: the image has 5 x 5 pixels"));
      loader.start();
    }
  }
}

TEST_CASE("evaluation: in order, whole, indices kept where an image is unreadable") {
  const Folder folder;
  for (int i = 0; i < 23; ++i)
    spill(folder.path / cat("{:02}.ppm", i), i == 11 ? "broken" : noise_ppm(30, 40 + i, static_cast<uint32_t>(i)));
  const auto d = open_dataset(folder.path.string());
  const EvalTransform transform{20, 16, Filter::bicubic};
  std::vector<uint8_t> first_run;
  for (int workers : {0, 3}) {
    LoaderOptions options;
    options.workers = workers;
    options.batch_size = 5;
    EvalLoader loader(*d, transform, options);
    for (int round = 0; round < 2; ++round) {
      std::vector<uint8_t> images;
      EvalBatch batch;
      int64_t at = 0;
      while (loader.next(batch)) {
        CHECK(batch.first == at);
        CHECK(batch.labels.size() == static_cast<size_t>(batch.count));
        CHECK(batch.images.size() == static_cast<size_t>(batch.count) * 16 * 16 * 3);
        for (int j = 0; j < batch.count; ++j) CHECK(batch.valid[static_cast<size_t>(j)] == (at + j != 11));
        at += batch.count;
        images.insert(images.end(), batch.images.begin(), batch.images.end());
      }
      CHECK(at == 23);
      CHECK(loader.bad_images() == 1);
      if (first_run.empty()) first_run = images;
      CHECK(images == first_run);
      loader.start();
    }
    loader.start(20);
    EvalBatch batch;
    REQUIRE(loader.next(batch));
    CHECK(batch.count == 3);
  }
  std::vector<uint8_t> want(16 * 16 * 3);
  ResizeScratch scratch;
  const Image image = d->load(2);
  eval_image(image.view(), transform, want.data(), scratch);
  CHECK(std::memcmp(want.data(), &first_run[2 * want.size()], want.size()) == 0);

  EvalLoader as_is(*d, {0, 16, Filter::bilinear}, {});
  EvalBatch batch;
  CHECK(contains(error_of([&] { as_is.next(batch); }), "00.ppm: the image has 40 x 30 pixels where 16 x 16"));
}
