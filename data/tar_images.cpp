// Images in tar archives, as the webdataset library names them: members of one name up to its first dot belong
// together, NAME.jpg (or another suffix of an image) is the image, NAME.cls its class as a number; others are left
// out. The archives are read where they are; compressed ones are unpacked into temporary files.
#include <glob.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <unordered_map>

#include "data/braces.h"
#include "data/encoded.h"
#include "data/gzip.h"
#include "data/kinds.h"
#include "data/tar.h"
#include "engine/file.h"
#include "engine/text.h"
#include "kernels/check.h"

namespace csml {
namespace fs = std::filesystem;
namespace {

constexpr int kMostClasses = 1'000'000;

/// An archive, and its content where it came compressed.
struct Shard {
  std::string path;
  FileDescriptor unpacked = FileDescriptor();

  TarList list() const { return unpacked ? list_tar(unpacked, path) : list_tar(path); }
  void read(uint64_t offset, void* to, size_t bytes) const {
    if (unpacked)
      read_file_part(unpacked, path, offset, to, bytes);
    else
      read_file_part(path, offset, to, bytes);
  }
};

struct Stored {
  size_t shard = 0;
  TarMember member;
  int label = -1;
};

class TarDataset : public EncodedDataset {
 public:
  TarDataset(const DatasetSpec& spec, const DecodeLimits& limits, std::vector<Shard> shards, std::vector<Stored> images,
             std::map<std::string, int64_t> left_out, std::string note)
      : EncodedDataset(spec, limits), shards_(std::move(shards)), images_(std::move(images)) {
    left_out_ = std::move(left_out);
    note_ = std::move(note);
    int classes = 0;
    for (const Stored& image : images_) {
      labels_.push_back(image.label);
      classes = std::max(classes, image.label + 1);
    }
    for (int c = 0; c < classes; ++c) class_names_.push_back(cat("{}", c));
  }

  std::string name(int64_t i) const override {
    const Stored& image = images_[static_cast<size_t>(i)];
    return shards_[image.shard].path + "/" + image.member.name;
  }

  uint64_t fingerprint() const override {
    uint64_t hash = 0;
    for (const Stored& image : images_) {
      const std::string name = fs::path(shards_[image.shard].path).filename().string() + "/" + image.member.name;
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
    shards_[image.shard].read(image.member.offset, bytes.data(), bytes.size());
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
  std::vector<Shard> shards_;
  std::vector<Stored> images_;
};

/// The files that a pattern names, sorted. A file of exactly that name is itself.
std::vector<std::string> expand(const std::string& pattern) {
  std::error_code error;
  if (fs::is_regular_file(pattern, error)) return {pattern};
  std::vector<std::string> paths;
  for (const std::string& name : expand_braces(pattern)) {
    glob_t found{};
    const bool any = ::glob(name.c_str(), GLOB_NOSORT, nullptr, &found) == 0;
    if (any) paths.insert(paths.end(), found.gl_pathv, found.gl_pathv + found.gl_pathc);
    ::globfree(&found);
    if (!any && name != pattern) throw Error(cat("data set tar:{}: {} is not there", pattern, name));
  }
  if (paths.empty()) throw Error(cat("data set tar:{}: no file of that name or pattern", pattern));
  std::sort(paths.begin(), paths.end());
  paths.erase(std::unique(paths.begin(), paths.end()), paths.end());
  return paths;
}

/// The archives, compressed ones unpacked: "2 of them unpacked" into `note`.
std::vector<Shard> open_shards(const std::vector<std::string>& paths, std::string& note) {
  std::vector<Shard> shards;
  size_t unpacked = 0;
  for (const std::string& path : paths) {
    shards.push_back({path});
    if (!is_gzip(path)) continue;
    shards.back().unpacked = unpacked_gzip(path);
    ++unpacked;
  }
  if (unpacked > 0) note = cat("{} of {} archives unpacked into temporary files", unpacked, paths.size());
  return shards;
}

int class_of(const Shard& shard, const TarMember& member) {
  char text[32];
  if (member.bytes > sizeof text) throw Error(cat("{}/{}: not a class's number", shard.path, member.name));
  shard.read(member.offset, text, member.bytes);
  const char* end = text + member.bytes;
  while (end > text && (end[-1] == '\n' || end[-1] == '\r' || end[-1] == ' ')) --end;
  int label = -1;
  const auto [stop, error] = std::from_chars(text, end, label);
  if (error != std::errc() || stop != end || label < 0 || label >= kMostClasses)
    throw Error(cat("{}/{}: not the number of a class below {}", shard.path, member.name, kMostClasses));
  return label;
}

/// Images of one archive, in its order. A sample without an image is none.
void collect(const Shard& archive, size_t shard, std::vector<Stored>& images,
             std::map<std::string, int64_t>& left_out) {
  std::unordered_map<std::string, Stored> samples;
  std::vector<std::string> order;
  for (TarMember& member : archive.list().files) {
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
        throw Error(
            cat("{}: two images of the name {}: {} and {}", archive.path, key, sample.member.name, member.name));
      sample.shard = shard;
      sample.member = std::move(member);
    } else {
      sample.label = class_of(archive, member);
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
  std::string note;
  std::vector<Shard> shards = open_shards(expand(spec.path), note);
  std::vector<Stored> images;
  std::map<std::string, int64_t> left_out;
  for (size_t s = 0; s < shards.size(); ++s) collect(shards[s], s, images, left_out);
  if (images.empty())
    throw Error(cat("data set tar:{}: no image in it ({}){}", spec.path, image_suffixes(), left_out_text(left_out)));
  const bool labelled = images.front().label >= 0;
  for (const Stored& image : images)
    if ((image.label >= 0) != labelled)
      throw Error(cat("data set tar:{}: {} has {} class, unlike the first image", spec.path, image.member.name,
                      labelled ? "no" : "a"));
  return std::make_unique<TarDataset>(spec, limits, std::move(shards), std::move(images), std::move(left_out),
                                      std::move(note));
}

}  // namespace csml
