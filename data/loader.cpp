#include "data/loader.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <set>

#include "data/pipeline.h"
#include "data/shuffle.h"
#include "kernels/check.h"
#include "kernels/random.h"

namespace csml {
namespace {

/// Images that could not be read, shared by all workers.
class BadImages {
 public:
  BadImages(const Dataset& dataset, double max_share, BadImageCallback callback)
      : dataset_(dataset),
        max_share_(max_share),
        callback_(std::move(callback)),
        good_(static_cast<size_t>(dataset.size())) {}

  /// Pixels of image i, or nothing when it is (or was) unreadable. Throws once too many are, for every worker the same.
  bool view(int64_t i, LoadScratch& scratch, ImageView& image, const ChooseRegion& region = {}) {
    if (count_.load(std::memory_order_relaxed) > 0) {
      const std::lock_guard lock(mutex_);
      if (!too_many_.empty()) throw Error(too_many_);
      if (bad_.count(i)) return false;
    }
    try {
      image = dataset_.view(i, scratch, region);
      good_[static_cast<size_t>(i)].store(true, std::memory_order_relaxed);
      return true;
    } catch (const std::bad_alloc&) {
      throw;  // no fault of the image
    } catch (const std::exception& e) {
      report(i, e.what());
      return false;
    }
  }
  /// Whether image i can be read, without reading it where that is known.
  bool readable(int64_t i, LoadScratch& scratch) {
    ImageView image;
    return good_[static_cast<size_t>(i)].load(std::memory_order_relaxed) || view(i, scratch, image);
  }
  int64_t count() const { return count_.load(); }

 private:
  void report(int64_t i, const std::string& reason) {
    const std::lock_guard lock(mutex_);
    if (!too_many_.empty()) throw Error(too_many_);
    if (!bad_.insert(i).second) return;
    count_.store(static_cast<int64_t>(bad_.size()));
    const std::string path = dataset_.name(i);
    if (callback_) callback_(path, reason.starts_with(path + ": ") ? reason.substr(path.size() + 2) : reason);
    if (static_cast<double>(bad_.size()) > max_share_ * static_cast<double>(dataset_.size()))
      too_many_ = cat("{} of {} images cannot be read, more than data.max_bad_share = {} allows; the last one: {}",
                      bad_.size(), dataset_.size(), max_share_, reason);
    if (!too_many_.empty()) throw Error(too_many_);
  }

  const Dataset& dataset_;
  double max_share_;
  BadImageCallback callback_;
  std::vector<std::atomic<bool>> good_;  // read at least once
  std::mutex mutex_;
  std::set<int64_t> bad_;
  std::string too_many_;  // why loading stopped; empty while it goes on
  std::atomic<int64_t> count_{0};
};

void check_options(const Dataset& dataset, const LoaderOptions& o) {
  CHECK(dataset.size() > 0 && dataset.size() < (int64_t{1} << 31), "a data set of {} images", dataset.size());
  if (o.workers < 0 || o.workers > 1024) throw UsageError(cat("data.workers = {}: must be 0 to 1024", o.workers));
  if (o.batch_size < 1) throw UsageError(cat("batch size {}: must be positive", o.batch_size));
  if (o.prefetch < 1) throw UsageError(cat("data.prefetch = {}: must be positive", o.prefetch));
  CHECK(o.ranks >= 1 && o.rank >= 0 && o.rank < o.ranks, "rank {} of {}", o.rank, o.ranks);
}

/// Positions that a worker takes at once: enough to make the queue's lock cheap, few enough to share a batch.
int chunk_size(const Dataset& dataset, const LoaderOptions& o) {
  const int share = o.batch_size / (2 * std::max(o.workers, 1));
  return std::clamp(dataset.in_memory() ? share : 2, 1, 32);
}

}  // namespace

// ---- pretraining ---------------------------------------------------------------------------------------------------

struct Loader::State {
  /// Views that see the batch in the same order: as drawn (shuffle -1), or under one of the key permutations.
  struct Order {
    int shuffle;
    bool own = false, neighbor = false;  // which images its views need
  };

  const Dataset& dataset;
  std::vector<ViewSpec> views;
  LoaderOptions options;
  std::vector<Order> orders{{.shuffle = -1}};
  bool wants_neighbor = false;
  BadImages bad;
  int64_t epoch = 0;
  std::vector<int32_t> order;
  std::shared_ptr<const NeighborTable> neighbors;
  Pipeline<Batch, LoadScratch> pipeline;  // last: its threads stop before the rest goes

  State(const Dataset& d, std::vector<ViewSpec> v, LoaderOptions o)
      : dataset(d),
        views(std::move(v)),
        options(std::move(o)),
        bad(d, options.max_bad_share, options.on_bad_image),
        pipeline(options.workers, options.prefetch, chunk_size(d, options),
                 {[this](int64_t number, Batch& batch) { return prepare(number, batch); },
                  [this](Batch& batch, int first, int last, LoadScratch& scratch) {
                    for (int at = first; at < last; ++at) fill(batch, static_cast<size_t>(at), scratch);
                  }}) {
    for (ViewSpec& view : views) {
      if (options.shuffle_span == 0) view.shuffle = -1;  // the permutation is the device's business
      auto its = std::find_if(orders.begin(), orders.end(), [&](const Order& x) { return x.shuffle == view.shuffle; });
      if (its == orders.end()) its = orders.insert(its, Order{.shuffle = view.shuffle});
      (view.source == ViewSpec::Source::neighbor ? its->neighbor : its->own) = true;
      wants_neighbor |= its->neighbor;
    }
  }

  /// What this process loads of a global batch, in each of the orders.
  void draw(int64_t number, Batch& batch) const {
    const int64_t here = options.batch_size, all = here * options.ranks, first = here * options.rank;
    const int32_t* sample = order.data() + number * all;
    batch.drawn.resize(orders.size());
    for (size_t o = 0; o < orders.size(); ++o) {
      std::vector<int32_t>& drawn = batch.drawn[o];
      drawn.assign(sample + first, sample + first + here);
      if (orders[o].shuffle < 0) continue;
      const int64_t step = epoch * (dataset.size() / all) + number;
      const std::vector<int32_t> place =
          shuffle_permutation(options.seed, step, static_cast<uint32_t>(orders[o].shuffle), all, options.shuffle_span);
      for (int64_t i = 0; i < here; ++i) drawn[static_cast<size_t>(i)] = sample[place[static_cast<size_t>(first + i)]];
    }
  }

  int prepare(int64_t number, Batch& batch) const {
    const auto count = static_cast<size_t>(options.batch_size);
    batch.epoch = epoch;
    batch.index = number;
    batch.views.resize(views.size());
    for (size_t v = 0; v < views.size(); ++v) {
      const AugmentConfig& augment = views[v].augment;
      batch.views[v].size = augment.crop_size;
      batch.views[v].channels = augment.channels;
      batch.views[v].images.resize(count * image_bytes(augment));
      batch.views[v].params.resize(count * ColorParams::kColumns);
    }
    batch.samples.resize(count);
    batch.neighbors.resize(count);
    batch.labels.resize(count);
    draw(number, batch);
    return options.batch_size;
  }

  static size_t image_bytes(const AugmentConfig& augment) {
    return static_cast<size_t>(augment.crop_size) * augment.crop_size * augment.channels;
  }

  CropBox crop_of(const ViewSpec& view, int64_t at_epoch, int64_t sample, int height, int width) const {
    return draw_crop(view.augment, height, width, options.seed, static_cast<uint64_t>(at_epoch),
                     static_cast<uint64_t>(sample), view.number);
  }

  /// The rectangle around all crops that `sample`'s views take from an image of the given extent.
  ChooseRegion region_of(ViewSpec::Source source, int shuffle, int64_t at_epoch, int64_t sample) const {
    return [=, this](int height, int width) {
      int y0 = height, x0 = width, y1 = 0, x1 = 0;
      for (const ViewSpec& view : views) {
        if (view.source != source || view.shuffle != shuffle) continue;
        const CropBox crop = crop_of(view, at_epoch, sample, height, width);
        y0 = std::min(y0, crop.y), y1 = std::max(y1, crop.y + crop.height);
        x0 = std::min(x0, crop.x), x1 = std::max(x1, crop.x + crop.width);
      }
      return y0 < y1 ? Window{y0, x0, y1 - y0, x1 - x0} : Window{0, 0, height, width};
    };
  }

  /// All views of one source, from one decode. Keys are the sample's, not the neighbour's: two samples that share a
  /// neighbour get different views of it.
  void make_views(Batch& batch, size_t at, int shuffle, ViewSpec::Source source, const ImageView& image, int64_t sample,
                  LoadScratch& scratch) const {
    for (size_t v = 0; v < views.size(); ++v) {
      const ViewSpec& view = views[v];
      if (view.source != source || view.shuffle != shuffle) continue;
      const auto key = static_cast<uint64_t>(sample), key_epoch = static_cast<uint64_t>(batch.epoch);
      const CropBox crop = crop_of(view, batch.epoch, sample, image.height, image.width);
      ColorParams color = draw_color(view.augment, options.seed, key_epoch, key, view.number);
      color.flip = crop.flip ? 1.0f : 0.0f;
      resize(image.crop(crop.y, crop.x, crop.height, crop.width), view.augment.crop_size, view.augment.crop_size,
             view.augment.filter, batch.views[v].images.data() + at * image_bytes(view.augment), scratch.resize);
      std::memcpy(batch.views[v].params.data() + at * ColorParams::kColumns, &color, sizeof color);
    }
  }

  /// The image at hand is `sample` or its replacement; returns which. Its pixels are there only where `views_of` needs
  /// them.
  int64_t own_image(int64_t sample, int64_t at_epoch, const Order& views_of, LoadScratch& scratch, ImageView& image) {
    if (views_of.own
            ? bad.view(sample, scratch, image, region_of(ViewSpec::Source::own, views_of.shuffle, at_epoch, sample))
            : bad.readable(sample, scratch))
      return sample;
    Random random(options.seed, Purpose::replace, static_cast<uint64_t>(at_epoch), static_cast<uint64_t>(sample));
    for (int attempt = 0; attempt < 1000; ++attempt) {
      const int64_t other = random.below(static_cast<uint32_t>(dataset.size()));
      if (bad.view(other, scratch, image, region_of(ViewSpec::Source::own, views_of.shuffle, at_epoch, other)))
        return other;
    }
    throw Error(cat("no readable image found in {} to stand for {}", dataset.describe(), dataset.name(sample)));
  }

  void fill(Batch& batch, size_t at, LoadScratch& scratch) {
    for (size_t o = 0; o < orders.size(); ++o) fill(batch, at, o, scratch);
  }

  void fill(Batch& batch, size_t at, size_t o, LoadScratch& scratch) {
    const Order& views_of = orders[o];
    ImageView image;
    const int64_t sample = own_image(batch.drawn[o][at], batch.epoch, views_of, scratch, image);
    const bool as_drawn = views_of.shuffle < 0;
    if (as_drawn) {
      batch.samples[at] = sample;
      batch.labels[at] = dataset.label(sample);
      batch.neighbors[at] = -1;
    }
    if (views_of.own) make_views(batch, at, views_of.shuffle, ViewSpec::Source::own, image, sample, scratch);
    if (!views_of.neighbor) return;

    const auto k = static_cast<uint32_t>(neighbors->k);
    const int32_t* row = neighbors->index.data() + static_cast<size_t>(sample) * k;
    Random random(options.seed, Purpose::neighbor, static_cast<uint64_t>(batch.epoch), static_cast<uint64_t>(sample));
    const uint32_t first = random.below(k);
    const ChooseRegion region = region_of(ViewSpec::Source::neighbor, views_of.shuffle, batch.epoch, sample);
    int64_t neighbor = sample;
    for (uint32_t step = 0; step < k; ++step)
      if (bad.view(row[(first + step) % k], scratch, image, region)) {
        neighbor = row[(first + step) % k];
        break;
      }
    if (neighbor == sample && !bad.view(sample, scratch, image, region))
      throw Error(cat("{} could be read a moment ago and cannot any more", dataset.name(sample)));
    if (as_drawn) batch.neighbors[at] = neighbor;
    make_views(batch, at, views_of.shuffle, ViewSpec::Source::neighbor, image, sample, scratch);
  }
};

Loader::Loader(const Dataset& dataset, std::vector<ViewSpec> views, LoaderOptions options) {
  check_options(dataset, options);
  CHECK(!views.empty(), "a loader without views");
  for (const ViewSpec& view : views) {
    check_augment(view.augment);
    if (view.augment.channels != dataset.channels())
      throw UsageError(cat("augment.channels = {} for images of {} channels: set the data set's option channels={}",
                           view.augment.channels, dataset.channels(), view.augment.channels));
  }
  state_ = std::make_unique<State>(dataset, std::move(views), std::move(options));
  if (batches_per_epoch() == 0)
    throw UsageError(cat("{} images do not fill a batch of {} on {} processes: make the batch smaller", dataset.size(),
                         state_->options.batch_size, state_->options.ranks));
}

Loader::~Loader() = default;

int64_t Loader::batches_per_epoch() const {
  return state_->dataset.size() / (int64_t{state_->options.batch_size} * state_->options.ranks);
}

void Loader::start_epoch(int64_t epoch, int64_t first_batch, std::shared_ptr<const NeighborTable> neighbors) {
  State& s = *state_;
  CHECK(epoch >= 0 && first_batch >= 0 && first_batch <= batches_per_epoch(), "start at epoch {}, batch {} of {}",
        epoch, first_batch, batches_per_epoch());
  const int64_t n = s.dataset.size();
  if (s.wants_neighbor) {
    CHECK(neighbors && neighbors->k > 0, "a view of a neighbour needs the neighbour table");
    CHECK(static_cast<int64_t>(neighbors->index.size()) == n * neighbors->k,
          "a neighbour table of {} entries for {} images with {} neighbours", neighbors->index.size(), n, neighbors->k);
    for (int32_t j : neighbors->index) CHECK(j >= 0 && j < n, "neighbour {} in a data set of {} images", j, n);
  }
  s.pipeline.stop();
  s.epoch = epoch;
  s.neighbors = std::move(neighbors);
  s.order.resize(static_cast<size_t>(n));
  for (size_t i = 0; i < s.order.size(); ++i) s.order[i] = static_cast<int32_t>(i);
  Random random(s.options.seed, Purpose::order, static_cast<uint64_t>(epoch));
  for (size_t i = s.order.size(); i > 1; --i)
    std::swap(s.order[i - 1], s.order[random.below(static_cast<uint32_t>(i))]);
  s.pipeline.start(first_batch, batches_per_epoch());
}

Batch Loader::sample_views(int64_t epoch, int64_t sample, std::shared_ptr<const NeighborTable> neighbors) {
  State& s = *state_;
  CHECK(s.options.batch_size == 1 && s.options.ranks == 1, "sample_views() of batches of {}", s.options.batch_size);
  CHECK(sample >= 0 && sample < s.dataset.size(), "sample {} of {}", sample, s.dataset.size());
  start_epoch(epoch, batches_per_epoch(), std::move(neighbors));
  const int64_t number = std::find(s.order.begin(), s.order.end(), sample) - s.order.begin();
  s.pipeline.stop();
  s.pipeline.start(number, number + 1);
  Batch batch;
  CHECK(next(batch), "no batch {}", number);
  return batch;
}

bool Loader::next(Batch& batch) { return state_->pipeline.next(batch); }
int64_t Loader::bad_images() const { return state_->bad.count(); }

// ---- evaluation ----------------------------------------------------------------------------------------------------

struct EvalLoader::State {
  const Dataset& dataset;
  EvalTransform transform;
  LoaderOptions options;
  BadImages bad;
  Pipeline<EvalBatch, LoadScratch> pipeline;

  State(const Dataset& d, EvalTransform t, LoaderOptions o)
      : dataset(d),
        transform(t),
        options(std::move(o)),
        bad(d, options.max_bad_share, options.on_bad_image),
        pipeline(options.workers, options.prefetch, chunk_size(d, options),
                 {[this](int64_t number, EvalBatch& batch) { return prepare(number, batch); },
                  [this](EvalBatch& batch, int first, int last, LoadScratch& scratch) {
                    for (int at = first; at < last; ++at) fill(batch, static_cast<size_t>(at), scratch);
                  }}) {}

  size_t image_bytes() const {
    return static_cast<size_t>(transform.size) * transform.size * static_cast<size_t>(dataset.channels());
  }

  int prepare(int64_t number, EvalBatch& batch) const {
    batch.first = number * options.batch_size;
    batch.count = static_cast<int>(std::min<int64_t>(options.batch_size, dataset.size() - batch.first));
    const auto count = static_cast<size_t>(batch.count);
    batch.images.resize(count * image_bytes());
    batch.labels.resize(count);
    batch.valid.resize(count);
    return batch.count;
  }

  void fill(EvalBatch& batch, size_t at, LoadScratch& scratch) {
    const int64_t i = batch.first + static_cast<int64_t>(at);
    uint8_t* out = batch.images.data() + at * image_bytes();
    ImageView image;
    batch.labels[at] = dataset.label(i);
    batch.valid[at] = bad.view(i, scratch, image);
    if (!batch.valid[at]) {
      std::memset(out, 0, image_bytes());
      return;
    }
    try {
      eval_image(image, transform, out, scratch.resize);
    } catch (const Error& e) { throw Error(cat("{}: {}", dataset.name(i), e.what())); }
  }

  int64_t batches() const { return (dataset.size() + options.batch_size - 1) / options.batch_size; }
  int64_t batches_each() const { return (batches() + options.ranks - 1) / options.ranks; }
};

EvalLoader::EvalLoader(const Dataset& dataset, EvalTransform transform, LoaderOptions options) {
  check_options(dataset, options);
  if (transform.size < 1 || transform.size > 4096 || (transform.resize != 0 && transform.resize < transform.size))
    throw UsageError(cat("evaluation crop of {} pixels from a short side of {}", transform.size, transform.resize));
  state_ = std::make_unique<State>(dataset, transform, std::move(options));
  start();
}

EvalLoader::~EvalLoader() = default;

void EvalLoader::start(int64_t first) {
  State& s = *state_;
  CHECK(first >= 0 && first % s.options.batch_size == 0, "evaluation starts at image {}, not a multiple of {}", first,
        s.options.batch_size);
  const int64_t all = s.batches(), begin = s.batches_each() * s.options.rank, end = begin + s.batches_each();
  s.pipeline.stop();
  s.pipeline.start(std::min(all, begin + first / s.options.batch_size), std::min(all, end));
}

int64_t EvalLoader::share() const { return state_->batches_each() * state_->options.batch_size; }

bool EvalLoader::next(EvalBatch& batch) { return state_->pipeline.next(batch); }
int64_t EvalLoader::bad_images() const { return state_->bad.count(); }

}  // namespace csml
