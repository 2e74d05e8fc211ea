// Images in tar archives, as the webdataset library names them: members of one name up to its first dot belong
// together, NAME.jpg (or .jpeg, .png, .bmp, .ppm, .pgm) is the image, NAME.cls its class as a number; others are left
// out. The archives are read where they are, never unpacked.
#include <glob.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <unordered_map>

#include "data/dataset_kinds.h"
#include "data/tar.h"
#include "engine/file.h"
#include "engine/text.h"
#include "kernels/check.h"

namespace csml {
namespace fs = std::filesystem;
namespace {

constexpr int kMostClasses = 1'000'000;

struct Stored {
  size_t shard = 0;
  TarMember member;
  int label = -1;
};

class TarDataset : public EncodedDataset {
 public:
  TarDataset(const DatasetSpec& spec, const DecodeLimits& limits, std::vector<std::string> shards,
             std::vector<Stored> images, std::map<std::string, int64_t> left_out)
      : EncodedDataset(spec, limits), shards_(std::move(shards)), images_(std::move(images)) {
    left_out_ = std::move(left_out);
    int classes = 0;
    for (const Stored& image : images_) {
      labels_.push_back(image.label);
      classes = std::max(classes, image.label + 1);
    }
    for (int c = 0; c < classes; ++c) class_names_.push_back(cat("{}", c));
  }

  std::string name(int64_t i) const override {
    const Stored& image = images_[static_cast<size_t>(i)];
    return shards_[image.shard] + "/" + image.member.name;
  }

  uint64_t fingerprint() const override {
    uint64_t hash = 0;
    for (const Stored& image : images_) {
      const std::string name = fs::path(shards_[image.shard]).filename().string() + "/" + image.member.name;
      const int64_t numbers[2] = {static_cast<int64_t>(image.member.bytes), image.label};
      hash = hash_bytes(name.data(), name.size(), hash);
      hash = hash_bytes(numbers, sizeof numbers, hash);
    }
    return hash;
  }

 protected:
  void read(int64_t i, std::vector<uint8_t>& bytes) const override {
    const Stored& image = images_[static_cast<size_t>(i)];
    if (image.member.bytes > limits().file_bytes)
      throw Error(cat("{} bytes: larger than the limit of {}", image.member.bytes, limits().file_bytes));
    bytes.resize(image.member.bytes);
    read_file_part(shards_[image.shard], image.member.offset, bytes.data(), bytes.size());
  }

  void select(const std::vector<int64_t>& keep) override {
    for (size_t to = 0; to < keep.size(); ++to) {
      const auto from = static_cast<size_t>(keep[to]);
      labels_[to] = labels_[from];
      if (to != from) images_[to] = std::move(images_[from]);
    }
    labels_.resize(keep.size());
    images_.resize(keep.size());
  }

 private:
  std::vector<std::string> shards_;
  std::vector<Stored> images_;
};

/// The files that a pattern names, sorted. A file of exactly that name is itself.
std::vector<std::string> expand(const std::string& pattern) {
  std::error_code error;
  if (fs::is_regular_file(pattern, error)) return {pattern};
  glob_t found{};
  std::vector<std::string> paths;
  if (::glob(pattern.c_str(), GLOB_NOSORT, nullptr, &found) == 0)
    paths.assign(found.gl_pathv, found.gl_pathv + found.gl_pathc);
  ::globfree(&found);
  if (paths.empty()) throw Error(cat("data set tar:{}: no file of that name or pattern", pattern));
  std::sort(paths.begin(), paths.end());
  return paths;
}

int class_of(const std::string& shard, const TarMember& member) {
  char text[32];
  if (member.bytes > sizeof text) throw Error(cat("{}/{}: not a class's number", shard, member.name));
  read_file_part(shard, member.offset, text, member.bytes);
  const char* end = text + member.bytes;
  while (end > text && (end[-1] == '\n' || end[-1] == '\r' || end[-1] == ' ')) --end;
  int label = -1;
  const auto [stop, error] = std::from_chars(text, end, label);
  if (error != std::errc() || stop != end || label < 0 || label >= kMostClasses)
    throw Error(cat("{}/{}: not the number of a class below {}", shard, member.name, kMostClasses));
  return label;
}

/// Images of one archive, in its order. A sample without an image is none.
void collect(const std::string& path, size_t shard, std::vector<Stored>& images,
             std::map<std::string, int64_t>& left_out) {
  std::unordered_map<std::string, Stored> samples;
  std::vector<std::string> order;
  for (TarMember& member : list_tar(path).files) {
    const size_t slash = member.name.rfind('/'), base = slash == std::string::npos ? 0 : slash + 1;
    const size_t dot = member.name.find('.', base);
    if (dot == std::string::npos || dot == base) {
      ++left_out[dot == base ? "hidden" : "without suffix"];
      continue;
    }
    const std::string key = member.name.substr(0, dot), kind = member.name.substr(dot);
    const bool image = kind.find('.', 1) == std::string::npos && is_image_name("x" + kind);
    if (!image && kind != ".cls") {
      // webdataset takes all from the first dot on as the kind: 22.05.jpg is of the kind .05.jpg
      ++left_out[is_image_name(kind)
                     ? "images with a second dot in their name (webdataset reads the name up to the first)"
                     : printable(kind, 200)];
      continue;
    }
    const auto [at, fresh] = samples.try_emplace(key);
    if (fresh) order.push_back(key);
    Stored& sample = at->second;
    if (image) {
      if (!sample.member.name.empty())
        throw Error(cat("{}: two images of the name {}: {} and {}", path, key, sample.member.name, member.name));
      sample.shard = shard;
      sample.member = std::move(member);
    } else {
      sample.label = class_of(path, member);
    }
  }
  for (const std::string& key : order)
    if (Stored& sample = samples[key]; !sample.member.name.empty())
      images.push_back(std::move(sample));
    else
      ++left_out["classes without an image"];
}

}  // namespace

std::unique_ptr<Dataset> open_tar(const DatasetSpec& spec, const DecodeLimits& limits) {
  if (spec.split_given)
    throw UsageError(cat("data set tar:{}: split= does not apply; name the archives of the split", spec.path));
  std::vector<std::string> shards = expand(spec.path);
  std::vector<Stored> images;
  std::map<std::string, int64_t> left_out;
  for (size_t s = 0; s < shards.size(); ++s) collect(shards[s], s, images, left_out);
  if (images.empty())
    throw Error(
        cat("data set tar:{}: no image in it (jpg, jpeg, png, bmp, ppm, pgm){}", spec.path, left_out_text(left_out)));
  const bool labelled = images.front().label >= 0;
  for (const Stored& image : images)
    if ((image.label >= 0) != labelled)
      throw Error(cat("data set tar:{}: {} has {} class, unlike the first image", spec.path, image.member.name,
                      labelled ? "no" : "a"));
  return std::make_unique<TarDataset>(spec, limits, std::move(shards), std::move(images), std::move(left_out));
}

}  // namespace csml
