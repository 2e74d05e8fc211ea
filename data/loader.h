// Worker threads that turn a data set into batches: augmented views for pretraining, plain images for evaluation.
//
// Batches come in order and are byte-identical for any number of workers (0 = computed by the caller's thread) and for
// any starting point, because every draw is keyed by (seed, epoch, sample, view) and not by who makes it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "data/augment.h"
#include "data/dataset.h"

namespace csml {

/// Nearest neighbours of every image: index[i * k + j], row i = neighbours of image i.
struct NeighborTable {
  std::vector<int32_t> index;
  int k = 0;
};

/// One view of each sample of a batch.
struct ViewSpec {
  enum class Source { own, neighbor };  // the sample's image, or the neighbour drawn for it
  Source source = Source::own;
  AugmentConfig augment;
  uint32_t number = 0;  // names the view's random stream; two views of one batch differ in it
  int shuffle = -1;     // a key view: which of the step's permutations it is computed under; -1: none
};

/// Pixels and colour parameters of one view of a batch, ready for the augment kernel.
struct ViewBatch {
  int size = 0, channels = 0;
  std::vector<uint8_t> images;  // [B, size, size, channels]
  std::vector<float> params;    // [B, ColorParams::kColumns]
};

struct Batch {
  int64_t epoch = 0, index = 0;             // index = number of the batch inside its epoch
  std::vector<ViewBatch> views;             // one per ViewSpec, in its order
  std::vector<int64_t> samples;             // [B] images used (after replacement of unreadable ones)
  std::vector<int64_t> neighbors;           // [B] neighbours used; -1 without a neighbour view
  std::vector<int> labels;                  // [B] for logging only; -1 where unknown
  double wait_seconds = 0;                  // how long next() waited for this batch
  std::vector<std::vector<int32_t>> drawn;  // the loader's own: images asked for, per order in which views see them
};

/// Told once per unreadable image, from a worker thread, one call at a time.
using BadImageCallback = std::function<void(const std::string& path, const std::string& reason)>;

struct LoaderOptions {
  uint64_t seed = 0;
  int workers = 2;              // threads; 0 = none
  int batch_size = 256;         // of this process
  int prefetch = 3;             // batches made ahead
  int rank = 0, ranks = 1;      // this process loads samples [rank B, rank B + B) of every global batch of ranks * B
  int64_t shuffle_span = 0;     // > 0: key views come permuted over such spans of the global batch (data/shuffle.h)
  double max_bad_share = 0.05;  // of the data set's images; beyond it the run stops
  BadImageCallback on_bad_image;
};

/// Augmented views. An epoch is a permutation of the data set keyed by (seed, epoch); the incomplete last batch is
/// dropped. One decode serves all views of an image. An unreadable image is replaced by another drawn from
/// (seed, Purpose::replace, epoch, sample); an unreadable neighbour by the next of its row, then by the sample itself.
/// Under shuffle_span a key view holds other samples of the global batch than its neighbours: an image whose query is
/// computed here and whose key elsewhere is decoded in both places.
class Loader {
 public:
  Loader(const Dataset& dataset, std::vector<ViewSpec> views, LoaderOptions options);
  ~Loader();

  int64_t batches_per_epoch() const;
  /// Starts (or restarts, at batch first_batch) an epoch; work in flight is dropped. The table is needed when a view
  /// asks for a neighbour: neighbour of sample i = row i [Random(seed, Purpose::neighbor, epoch, i).below(k)].
  void start_epoch(int64_t epoch, int64_t first_batch = 0, std::shared_ptr<const NeighborTable> neighbors = nullptr);
  /// The next batch, into `batch` (its memory is recycled); false at the end of the epoch. Throws what a worker threw.
  bool next(Batch& batch);
  /// The batch of one that shows `sample` as any batch of this epoch does; of a loader of batches of one.
  Batch sample_views(int64_t epoch, int64_t sample, std::shared_ptr<const NeighborTable> neighbors = nullptr);
  /// Distinct unreadable images met so far.
  int64_t bad_images() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

struct EvalBatch {
  int64_t first = 0;            // index of the first image
  int count = 0;                // images in this batch (the last one may be short)
  std::vector<uint8_t> images;  // [count, size, size, channels]; an unreadable image is black
  std::vector<int> labels;      // [count]
  std::vector<uint8_t> valid;   // [count] 0 where the image could not be read
  double wait_seconds = 0;
};

/// Every image once, in order, un-augmented; indices are kept, unreadable images are marked. Of several processes each
/// loads the images [rank * share(), (rank + 1) * share()). Uses of LoaderOptions: workers, batch_size, prefetch, rank,
/// ranks, max_bad_share, on_bad_image.
class EvalLoader {
 public:
  EvalLoader(const Dataset& dataset, EvalTransform transform, LoaderOptions options);
  ~EvalLoader();

  /// Starts again at image `first` (a multiple of the batch size) of this process's share.
  void start(int64_t first = 0);
  /// Images per process: whole batches, so that the batches are the same for any number of processes.
  int64_t share() const;
  bool next(EvalBatch& batch);
  int64_t bad_images() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace csml
