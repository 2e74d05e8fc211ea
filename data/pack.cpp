// Reads packs (data/pack.h).
#include "data/pack.h"

#include <algorithm>
#include <limits>

#include "data/encoded.h"
#include "data/kinds.h"
#include "data/memory_dataset.h"
#include "data/square.h"
#include "engine/json.h"
#include "engine/safetensors.h"
#include "kernels/check.h"

namespace csml {
namespace fs = std::filesystem;
namespace {

using nlohmann::json;

constexpr size_t kMostPackBytes = size_t{256} << 20;

/// One shard: what is small in memory, its images on disk.
struct Shard {
  fs::path path;
  uint64_t position = 0;  // of the first image's bytes
  FileDigest digest;
  std::vector<int64_t> labels = {}, checksums = {}, offsets = {}, name_offsets = {};
  std::string names = {};

  std::string name(size_t i) const {
    return names.substr(static_cast<size_t>(name_offsets[i]),
                        static_cast<size_t>(name_offsets[i + 1] - name_offsets[i]));
  }
};

/// What pack.json says.
struct Pack {
  std::vector<std::string> class_names;
  int height = 0, width = 0, channels = 0;
  std::vector<std::pair<std::string, FileDigest>> shards;
  int64_t images = 0;
};

Pack read_pack(const fs::path& path) {
  const json pack = parse_json(read_text_file(path, kMostPackBytes));
  const auto damaged = [&](const char* what) { return Error(cat("{}: {}", path.string(), what)); };
  if (!pack.is_object() || pack.value("format", json()) != kPackFormat) throw damaged("not the index of a pack");
  if (pack.value("version", json()) != kPackVersion) throw damaged("a version that this program does not read");
  Pack out;
  try {
    out.images = whole_number<int64_t>(pack.at("images"));
    for (const json& name : pack.at("classes")) out.class_names.push_back(name.get_ref<const std::string&>());
    if (const json& pixels = pack.at("pixels"); !pixels.is_null()) {
      int* const extents[] = {&out.height, &out.width, &out.channels};
      if (pixels.size() != 3) throw damaged("pixels are not [height, width, channels]");
      for (size_t i = 0; i < 3; ++i) {
        const auto extent = whole_number<int64_t>(pixels.at(i));
        if (extent < 1 || extent > 65'500) throw damaged("an extent of the pixels that no image has");
        *extents[i] = static_cast<int>(extent);
      }
      if (out.channels != 1 && out.channels != 3) throw damaged("pixels must have 1 or 3 channels");
    }
    for (const json& shard : pack.at("shards")) {
      const auto& file = shard.at("file").get_ref<const std::string&>();
      if (file.empty() || file.find('/') != std::string::npos || file.starts_with('.'))
        throw damaged("the name of a shard is no file's name");
      out.shards.emplace_back(file, FileDigest{whole_number<uint64_t>(shard.at("bytes")),
                                               shard.at("xxh3_128").get_ref<const std::string&>()});
    }
  } catch (const json::exception&) { throw damaged("an entry is missing or of the wrong type"); }
  if (out.shards.empty()) throw damaged("it names no shard");
  return out;
}

std::vector<int64_t> read_numbers(const SafetensorsFile& file, const std::string& name, int64_t count) {
  const ArrayInfo& info = file.info(name);
  if (info.dtype != DType::i64 || info.shape != Shape{count})
    throw Error(cat("{}: '{}' is not {} whole numbers", file.path().string(), name, count));
  std::vector<int64_t> values(static_cast<size_t>(count));
  file.read(name, values.data(), values.size() * sizeof(int64_t));
  return values;
}

/// Offsets that begin with 0, never fall, and end with the size of what they cut.
std::vector<int64_t> read_offsets(const SafetensorsFile& file, const std::string& name, int64_t count,
                                  const std::string& cut) {
  std::vector<int64_t> values = read_numbers(file, name, count);
  const ArrayInfo& info = file.info(cut);
  if (info.dtype != DType::u8 || info.shape.rank() != 1 || values.front() != 0 ||
      !std::is_sorted(values.begin(), values.end()) || static_cast<uint64_t>(values.back()) != info.bytes)
    throw Error(cat("{}: '{}' does not cut '{}' into pieces: the file is damaged", file.path().string(), name, cut));
  return values;
}

Shard open_shard(const fs::path& path, const FileDigest& digest, const Pack& pack) {
  std::error_code error;
  if (const uint64_t bytes = fs::file_size(path, error); error || bytes != digest.bytes)
    throw Error(error ? cat("{}: {}", path.string(), error.message())
                      : cat("{}: {} bytes, the pack's index says {}: damaged", path.string(), bytes, digest.bytes));
  const SafetensorsFile file = SafetensorsFile::open(path);
  Shard shard{.path = path, .position = 0, .digest = digest};
  const Shape labels = file.info("labels").shape;
  if (labels.rank() != 1 || labels[0] < 1) throw Error(cat("{}: 'labels' is not a list", path.string()));
  const int64_t n = labels[0];
  shard.labels = read_numbers(file, "labels", n);
  for (int64_t label : shard.labels)
    if (label < -1 || label >= static_cast<int64_t>(pack.class_names.size()))
      throw Error(cat("{}: label {} of {} classes", path.string(), label, pack.class_names.size()));
  shard.checksums = read_numbers(file, "checksums", n);
  shard.name_offsets = read_offsets(file, "name_offsets", n + 1, "names");
  shard.names.resize(file.info("names").bytes);
  file.read("names", shard.names.data(), shard.names.size());
  shard.position = file.position(pack.height == 0 ? "images" : "pixels");
  if (pack.height == 0) {
    shard.offsets = read_offsets(file, "offsets", n + 1, "images");
  } else if (const ArrayInfo& pixels = file.info("pixels");
             pixels.dtype != DType::u8 || pixels.shape != Shape{n, pack.height, pack.width, pack.channels}) {
    throw Error(cat("{}: 'pixels' has not the shape that the pack's index says", path.string()));
  }
  return shard;
}

/// What both kinds of pack share: where an image is, and its bytes with their checksum.
class PackImages {
 public:
  explicit PackImages(const fs::path& folder) : pack_(read_pack(folder / kPackFile)) {
    for (const auto& [file, digest] : pack_.shards) {
      shards_.push_back(open_shard(folder / file, digest, pack_));
      for (size_t i = 0; i < shards_.back().labels.size(); ++i) places_.emplace_back(shards_.size() - 1, i);
    }
    if (static_cast<int64_t>(places_.size()) != pack_.images)
      throw Error(
          cat("{}: {} images, its shards hold {}", (folder / kPackFile).string(), pack_.images, places_.size()));
  }

  const Pack& pack() const { return pack_; }
  std::vector<int> labels() const {
    std::vector<int> labels;
    for (const auto& [shard, i] : places_) labels.push_back(static_cast<int>(shards_[shard].labels[i]));
    return labels;
  }
  std::string name(int64_t image) const {
    const auto& [shard, i] = places_[static_cast<size_t>(image)];
    return shards_[shard].path.string() + "/" + shards_[shard].name(i);
  }
  /// xxh3 over the images' own checksums and labels.
  uint64_t fingerprint() const {
    uint64_t hash = 0;
    for (const auto& [shard, i] : places_) {
      const int64_t numbers[2] = {shards_[shard].checksums[i], shards_[shard].labels[i]};
      hash = hash_bytes(numbers, sizeof numbers, hash);
    }
    return hash;
  }
  void read(int64_t image, std::vector<uint8_t>& bytes, size_t most) const {
    const auto& [s, i] = places_[static_cast<size_t>(image)];
    const Shard& shard = shards_[s];
    const bool raw = pack_.height > 0;
    const uint64_t pixels = static_cast<uint64_t>(pack_.height) * static_cast<uint64_t>(pack_.width) *
                            static_cast<uint64_t>(pack_.channels);
    const uint64_t first = raw ? i * pixels : static_cast<uint64_t>(shard.offsets[i]);
    const uint64_t count = raw ? pixels : static_cast<uint64_t>(shard.offsets[i + 1]) - first;
    if (count > most) throw Error(cat("{} bytes: larger than the limit of {}", count, most));
    bytes.resize(count);
    read_file_part(shard.path, shard.position + first, bytes.data(), count);
    if (static_cast<int64_t>(hash_bytes(bytes.data(), bytes.size(), 0)) != shard.checksums[i])
      throw Error("does not match its checksum: the pack is damaged");
  }
  void verify() const {
    for (const Shard& shard : shards_)
      if (digest_of(shard.path) != shard.digest)
        throw Error(cat("{}: does not match its checksum: the pack is damaged", shard.path.string()));
  }
  void select(const std::vector<int64_t>& keep) {
    for (size_t to = 0; to < keep.size(); ++to) places_[to] = places_[static_cast<size_t>(keep[to])];
    places_.resize(keep.size());
  }

 private:
  Pack pack_;
  std::vector<Shard> shards_;
  std::vector<std::pair<size_t, size_t>> places_;  // of image i: shard, position in it
};

void select_labels(const std::vector<int64_t>& keep, std::vector<int>& labels) {
  for (size_t to = 0; to < keep.size(); ++to) labels[to] = labels[static_cast<size_t>(keep[to])];
  labels.resize(keep.size());
}

class EncodedPack : public EncodedDataset {
 public:
  EncodedPack(const DatasetSpec& spec, const DecodeLimits& limits, PackImages images)
      : EncodedDataset(spec, limits), images_(std::move(images)) {
    labels_ = images_.labels();
    class_names_ = images_.pack().class_names;
  }
  std::string name(int64_t i) const override { return images_.name(i); }
  uint64_t fingerprint() const override { return images_.fingerprint(); }
  void verify() const override { images_.verify(); }

 protected:
  void read(int64_t i, std::vector<uint8_t>& bytes) const override { images_.read(i, bytes, limits().file_bytes); }
  void select(const std::vector<int64_t>& keep) override {
    images_.select(keep);
    select_labels(keep, labels_);
  }

 private:
  PackImages images_;
};

class RawPack : public Dataset {
 public:
  RawPack(const DatasetSpec& spec, PackImages images) : images_(std::move(images)), size_(spec.size) {
    kind_ = spec.kind;
    path_ = spec.path;
    channels_ = spec.channels;
    labels_ = images_.labels();
    class_names_ = images_.pack().class_names;
  }
  std::string name(int64_t i) const override { return images_.name(i); }
  uint64_t fingerprint() const override { return images_.fingerprint(); }
  void verify() const override { images_.verify(); }
  bool in_memory() const override { return false; }
  std::string pixels_text() const override {
    const Pack& p = images_.pack();
    return size_ > 0 ? cat("raw pixels as {0} x {0} x {1}", size_, channels_)
                     : cat("raw pixels, {} x {} x {}", p.width, p.height, channels_);
  }
  ImageView view(int64_t i, LoadScratch& scratch, const ChooseRegion&) const override {
    const Pack& p = images_.pack();
    try {
      images_.read(i, scratch.bytes, std::numeric_limits<size_t>::max());
    } catch (const std::exception& e) { throw Error(cat("{}: {}", name(i), e.what())); }
    ImageView image{scratch.bytes.data(), p.height, p.width, p.channels, ptrdiff_t{p.width} * p.channels};
    if (p.channels != channels_) {
      scratch.decoded.reset(p.height, p.width, channels_);
      store_pixels(image, channels_, scratch.decoded.data());
      image = scratch.decoded.view();
    }
    return size_ > 0 ? fit_square(image, size_, scratch.resized, scratch.resize) : image;
  }

 protected:
  void select(const std::vector<int64_t>& keep) override {
    images_.select(keep);
    select_labels(keep, labels_);
  }

 private:
  PackImages images_;
  int size_;
};

}  // namespace

std::unique_ptr<Dataset> open_pack(const DatasetSpec& spec, const DecodeLimits& limits) {
  if (spec.split_given)
    throw UsageError(cat("data set pack:{}: split= does not apply; a pack holds what was packed", spec.path));
  PackImages images(spec.path);
  if (images.pack().height > 0) return std::make_unique<RawPack>(spec, std::move(images));
  return std::make_unique<EncodedPack>(spec, limits, std::move(images));
}

}  // namespace csml
