// Data sets: images with or without labels, from one SPEC string.
//
//   SPEC = [KIND:]PATH[?OPTION&OPTION…]      (? also separates options; without KIND it is recognised from the path)
//
//   KIND       PATH
//   cifar10    directory of the binary version's files (any of data_batch_1 … 5.bin; test_batch.bin), or the one above
//   cifar100   likewise: train.bin, test.bin; fine labels
//   stl10      directory of the binary version's files (train_X.bin, train_y.bin, …), or the one above
//   idx        directory of MNIST-like files, plain or .gz
//   folder     directory with train/ and val/ (or test/) in it, of which split picks one, or without; then one folder
//              per class, sorted by name, searched to any depth; or images directly in it, unlabelled
//   list       text file, one image a line: "PATH NUMBER", "PATH<tab>CLASS" or "PATH"; relative to the list's folder.
//              A name that ends in .csv is read as comma-separated values (data/image_list.cpp)
//   tar        archives of images and labels as the webdataset library makes them (data/tar_images.cpp), one file or a
//              pattern with *, [..], {a,b} and {000..147}, read in the order of their names and where they lie;
//              compressed ones (.tar.gz) are unpacked into a temporary file
//   pack       directory that csml pack wrote (data/pack.h)
//   synthetic  the word "shapes": drawn shapes, limit of them (default 2000), size pixels wide (default 32)
//
//   split=train|test   part of the data set (default train; val means test; stl10 also has unlabeled)
//   limit=N            N images, class-balanced: the first of every class in file order, then the second of every
//                      class, … until there are N. A smaller limit is a subset of a larger one.
//   holdout=P%         cuts P % of every class off (after limit), chosen by a fixed seed;
//   part=rest|holdout  says which side of the cut this data set is (default rest)
//   size=N             images come as N x N: short side resized to N (bilinear), central crop
//   channels=1|3       gray is repeated to 3 channels, colour is reduced to luma for 1 (default 3)
//   labels=none        forgets the labels
//   exif=apply|ignore  turns JPEG files upright by the orientation in their EXIF (default ignore, as torchvision does)
//
// Errors: UsageError for a SPEC that cannot be read, Error for data that are missing or damaged.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "data/decode.h"
#include "data/image.h"
#include "data/resize.h"

namespace csml {

/// Memory reused from image to image, one per thread.
struct LoadScratch {
  std::vector<uint8_t> bytes;
  Image decoded, upright, resized;
  ResizeScratch resize;
};

class Dataset {
 public:
  virtual ~Dataset() = default;

  int64_t size() const { return static_cast<int64_t>(labels_.size()); }
  /// Class of image i in [0, class_count()), -1 when it has none.
  int label(int64_t i) const;
  bool has_labels() const { return class_count() > 0; }
  int class_count() const { return static_cast<int>(class_names_.size()); }
  const std::vector<std::string>& class_names() const { return class_names_; }
  int channels() const { return channels_; }
  /// One line: kind, path, images, classes, pixels.
  std::string describe() const;
  /// Where image i comes from: a file's path, or "PATH#17" for the 17th record.
  virtual std::string name(int64_t i) const = 0;
  /// xxh3 over the content (images in memory) or over relative names, file sizes and labels (image files).
  virtual uint64_t fingerprint() const = 0;
  /// Pixels are in memory and need no decoding.
  virtual bool in_memory() const = 0;
  /// Pixels of image i, valid until the scratch is used again. With a region, pixels outside it may be undefined.
  /// Throws Error naming the file when it cannot be read. Thread-safe for different scratches.
  virtual ImageView view(int64_t i, LoadScratch& scratch, const ChooseRegion& region = {}) const = 0;

  /// The bytes of image i's file as they are stored; false where there are pixels only. Throws as view() does.
  virtual bool encoded(int64_t i, std::vector<uint8_t>& bytes) const;
  /// Compares what is stored with checksums that came with it, where there are any. Throws Error for damage.
  virtual void verify() const {}

  /// Numbers the classes as `reference` does, by their names (labels_by_name), so that the labels of both compare. Throws
  /// Error for images of a class that `reference` has not.
  void use_classes_of(const Dataset& reference);
  /// What the data set's place holds and this does not, by reason: ".webp" -> 12.
  const std::map<std::string, int64_t>& left_out() const { return left_out_; }

  /// Keeps `count` images, those that limit=COUNT of a SPEC names, where there are more. Taken from the images that are
  /// here: after the SPEC's own limit and holdout, so that nothing held out comes back.
  void limit(int64_t count);

  /// A copy of image i.
  Image load(int64_t i) const;
  /// "32 x 32 x 3 in memory", "image files": the end of describe().
  virtual std::string pixels_text() const = 0;

 protected:
  friend std::unique_ptr<Dataset> open_dataset(const std::string& spec, const DecodeLimits& limits);
  /// Keeps the images listed (ascending).
  virtual void select(const std::vector<int64_t>& keep) = 0;

  std::string kind_, path_, note_;  // note_: what else describe() should say
  std::vector<int> labels_;
  std::vector<std::string> class_names_;
  std::map<std::string, int64_t> left_out_;
  int channels_ = 3;
};

/// "; left out: 12 .webp, 3 hidden", or nothing.
std::string left_out_text(const std::map<std::string, int64_t>& left_out);

/// xxh3 of some bytes.
uint64_t hash_bytes(const void* data, size_t size, uint64_t seed);

/// Opens a data set by its SPEC. `limits` guard the decoding of image files.
std::unique_ptr<Dataset> open_dataset(const std::string& spec, const DecodeLimits& limits = {});

}  // namespace csml
