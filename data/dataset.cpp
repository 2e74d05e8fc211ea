#include "data/dataset.h"

// Header only, and without the vector code, whose AVX-512 part makes g++ 12 warn.
#define XXH_INLINE_ALL
#define XXH_VECTOR XXH_SCALAR
#include <xxhash.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <iterator>

#include "data/class_names.h"
#include "data/dataset_kinds.h"
#include "data/pack.h"
#include "engine/nearest.h"
#include "kernels/check.h"
#include "kernels/random.h"

namespace csml {
namespace fs = std::filesystem;
namespace {

const std::vector<std::string> kKinds = {"cifar10", "cifar100", "idx", "folder", "list", "tar", "pack", "synthetic"};
const std::vector<std::string> kOptions = {"split", "limit", "holdout", "part", "size", "channels", "labels"};

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

int64_t whole_number(const std::string& name, const std::string& text, int64_t low, int64_t high) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < low || value > high)
    throw UsageError(cat("data set option {}={}: expected a whole number from {} to {}", name, text, low, high));
  return value;
}

double percentage(const std::string& text) {
  const bool percent = text.ends_with('%');
  double value = 0;
  const char* last = text.data() + text.size() - (percent ? 1 : 0);
  const auto [end, error] = std::from_chars(text.data(), last, value);
  if (percent) value /= 100;
  if (error != std::errc() || end != last || !(value > 0 && value < 1))
    throw UsageError(cat("data set option holdout={}: expected a share such as 10% or 0.1", text));
  return value;
}

void set_option(DatasetSpec& spec, const std::string& option) {
  const size_t equals = option.find('=');
  const std::string name = option.substr(0, equals);
  if (std::find(kOptions.begin(), kOptions.end(), name) == kOptions.end())
    throw UsageError(
        cat("unknown data set option \"{}\"{} (known: {})", name, suggestion(name, kOptions), joined(kOptions)));
  if (equals == std::string::npos) throw UsageError(cat("data set option \"{0}\" needs a value: {0}=…", name));
  const std::string value = option.substr(equals + 1);
  const auto choice = [&](const std::vector<std::string>& known) {
    if (std::find(known.begin(), known.end(), value) == known.end())
      throw UsageError(cat("data set option {}={}: expected one of {}", name, value, joined(known)));
    return value;
  };
  if (name == "split") {
    spec.test = choice({"train", "test", "val"}) != "train";
    spec.split_given = true;
  } else if (name == "limit") {
    spec.limit = whole_number(name, value, 1, int64_t{1} << 40);
  } else if (name == "holdout") {
    spec.holdout = percentage(value);
  } else if (name == "part") {
    spec.part_holdout = choice({"rest", "holdout"}) == "holdout";
  } else if (name == "size") {
    spec.size = static_cast<int>(whole_number(name, value, 1, 4096));
  } else if (name == "channels") {
    spec.channels = choice({"1", "3"}) == "1" ? 1 : 3;
  } else {
    choice({"none"});
    spec.labels = false;
  }
}

/// What a path without KIND holds.
std::string recognise(const std::string& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (!fs::exists(status)) throw Error(cat("data set {}: no such file or directory", path));
  if (fs::is_regular_file(status)) {
    const std::string extension = fs::path(path).extension().string();
    if (extension == ".tar") return "tar";
    return "list";
  }
  if (fs::exists(fs::path(path) / kPackFile, error)) return "pack";
  if (!find_directory(path, "cifar-10-batches-bin", {"data_batch_1.bin", "test_batch.bin"}).empty()) return "cifar10";
  if (!find_directory(path, "cifar-100-binary", {"train.bin", "test.bin"}).empty()) return "cifar100";
  for (const fs::directory_entry& entry : fs::directory_iterator(path, error))
    if (entry.path().filename().string().find("idx3-ubyte") != std::string::npos) return "idx";
  return "folder";
}

/// Images of every class (unlabelled ones form one), classes ascending, in file order inside a class.
std::vector<std::vector<int64_t>> by_class(const std::vector<int>& labels, int classes) {
  std::vector<std::vector<int64_t>> lists(static_cast<size_t>(classes) + 1);
  for (size_t i = 0; i < labels.size(); ++i)
    lists[static_cast<size_t>(labels[i] < 0 ? classes : labels[i])].push_back(static_cast<int64_t>(i));
  return lists;
}

std::vector<int64_t> limited(const std::vector<int>& labels, int classes, int64_t limit) {
  const auto lists = by_class(labels, classes);
  std::vector<int64_t> keep;
  for (size_t round = 0; static_cast<int64_t>(keep.size()) < limit; ++round) {
    const size_t before = keep.size();
    for (const auto& list : lists)
      if (round < list.size() && static_cast<int64_t>(keep.size()) < limit) keep.push_back(list[round]);
    if (keep.size() == before) break;
  }
  std::sort(keep.begin(), keep.end());
  return keep;
}

std::vector<int64_t> held_out(const std::vector<int>& labels, int classes, double share, bool part_holdout) {
  std::vector<int64_t> keep;
  auto lists = by_class(labels, classes);
  for (size_t c = 0; c < lists.size(); ++c) {
    auto& list = lists[c];
    Random random(0, Purpose::split, 0, c);
    for (size_t i = list.size(); i > 1; --i) std::swap(list[i - 1], list[random.below(static_cast<uint32_t>(i))]);
    const auto cut = static_cast<ptrdiff_t>(std::llround(share * static_cast<double>(list.size())));
    keep.insert(keep.end(), part_holdout ? list.begin() : list.begin() + cut,
                part_holdout ? list.begin() + cut : list.end());
  }
  std::sort(keep.begin(), keep.end());
  return keep;
}

}  // namespace

DatasetSpec parse_spec(const std::string& text) {
  DatasetSpec spec;
  const size_t question = text.find('?');
  std::string head = text.substr(0, question);
  if (question != std::string::npos) {
    size_t at = question + 1;
    while (at <= text.size()) {
      const size_t end = std::min(text.find_first_of("&?", at), text.size());
      if (end > at) set_option(spec, text.substr(at, end - at));
      at = end + 1;
    }
  }
  std::error_code error;
  const size_t colon = head.find(':');
  if (colon != std::string::npos) {
    spec.kind = head.substr(0, colon);
    if (std::find(kKinds.begin(), kKinds.end(), spec.kind) != kKinds.end()) {
      head = head.substr(colon + 1);
    } else if (fs::exists(head, error)) {
      spec.kind.clear();  // a path with a colon in it
    } else {
      throw UsageError(
          cat("unknown data set kind \"{}\"{} (known: {})", spec.kind, suggestion(spec.kind, kKinds), joined(kKinds)));
    }
  }
  if (head.empty()) throw UsageError(cat("data set \"{}\" has no path: write KIND:PATH", text));
  if (spec.part_holdout && spec.holdout == 0)
    throw UsageError("data set option part=holdout needs the share to hold out, as in holdout=10%");
  spec.path = head;
  if (spec.kind.empty()) spec.kind = recognise(head);
  return spec;
}

std::string find_directory(const std::string& path, const std::string& inner, const std::vector<std::string>& files) {
  std::error_code error;
  for (const fs::path& directory : {fs::path(path), fs::path(path) / inner})
    for (const std::string& file : files)
      if (fs::exists(directory / file, error)) return directory.string();
  return {};
}

uint64_t hash_bytes(const void* data, size_t size, uint64_t seed) { return XXH3_64bits_withSeed(data, size, seed); }

int Dataset::label(int64_t i) const {
  DCHECK(i >= 0 && i < size(), "image {} of {}", i, size());
  return labels_[static_cast<size_t>(i)];
}

std::string left_out_text(const std::map<std::string, int64_t>& left_out) {
  std::string text;
  for (const auto& [reason, count] : left_out)
    text += cat("{}{} {}", text.empty() ? "; left out: " : ", ", count, reason);
  return text;
}

void Dataset::use_classes_of(const Dataset& reference) {
  const std::string place = cat("{}:{}", kind_, path_), other = cat("{}:{}", reference.kind_, reference.path_);
  labels_ = labels_by_name(labels_, {class_names_, place}, {reference.class_names_, other});
  class_names_ = reference.class_names_;
}

void Dataset::limit(int64_t count) {
  CHECK(count > 0, "a limit of {} images", count);
  if (count < size()) select(limited(labels_, class_count(), count));
}

bool Dataset::encoded(int64_t, std::vector<uint8_t>&) const { return false; }

Image Dataset::load(int64_t i) const {
  CHECK(i >= 0 && i < size(), "image {} of {}", i, size());
  LoadScratch scratch;
  const ImageView from = view(i, scratch);
  Image copy(from.height, from.width, from.channels);
  store_pixels(from, from.channels, copy.data());
  return copy;
}

std::string Dataset::describe() const {
  const std::string classes = has_labels() ? cat("{} classes", class_count()) : "no labels";
  return cat("{}:{}: {} images, {}, {}{}{}{}", kind_, path_, size(), classes, pixels_text(), note_.empty() ? "" : "; ",
             note_, left_out_text(left_out_));
}

MemoryDataset::MemoryDataset(Content content)
    : height_(content.height), width_(content.width), pixels_(std::move(content.pixels)) {
  kind_ = std::move(content.kind);
  path_ = std::move(content.path);
  labels_ = std::move(content.labels);
  class_names_ = std::move(content.class_names);
  channels_ = content.channels;
  CHECK(pixels_.size() == labels_.size() * image_bytes(), "{} bytes of pixels for {} images of {} bytes",
        pixels_.size(), labels_.size(), image_bytes());
  record_.resize(labels_.size());
  for (size_t i = 0; i < record_.size(); ++i) record_[i] = static_cast<int64_t>(i);
}

std::string MemoryDataset::name(int64_t i) const { return cat("{}#{}", path_, record_[static_cast<size_t>(i)]); }

std::string MemoryDataset::pixels_text() const { return cat("{} x {} x {} in memory", width_, height_, channels_); }

uint64_t MemoryDataset::fingerprint() const {
  return hash_bytes(labels_.data(), labels_.size() * sizeof(int), hash_bytes(pixels_.data(), pixels_.size(), 0));
}

ImageView MemoryDataset::view(int64_t i, LoadScratch&, const ChooseRegion&) const {
  DCHECK(i >= 0 && i < size(), "image {} of {}", i, size());
  return {pixels_.data() + static_cast<size_t>(i) * image_bytes(), height_, width_, channels_,
          ptrdiff_t{width_} * channels_};
}

void MemoryDataset::select(const std::vector<int64_t>& keep) {
  for (size_t to = 0; to < keep.size(); ++to) {
    const auto from = static_cast<size_t>(keep[to]);
    labels_[to] = labels_[from];
    record_[to] = record_[from];
    std::memmove(pixels_.data() + to * image_bytes(), pixels_.data() + from * image_bytes(), image_bytes());
  }
  labels_.resize(keep.size());
  record_.resize(keep.size());
  pixels_.resize(keep.size() * image_bytes());
  pixels_.shrink_to_fit();
}

void store_pixels(const ImageView& image, int channels, uint8_t* out) {
  for (int y = 0; y < image.height; ++y) {
    const uint8_t* in = image.row(y);
    uint8_t* to = out + static_cast<size_t>(y) * image.width * channels;
    if (image.channels == channels) {
      std::memcpy(to, in, static_cast<size_t>(image.width) * channels);
    } else if (channels == 3) {
      for (int x = 0; x < image.width; ++x) to[3 * x] = to[3 * x + 1] = to[3 * x + 2] = in[x];
    } else {
      for (int x = 0; x < image.width; ++x) to[x] = luma(in[3 * x], in[3 * x + 1], in[3 * x + 2]);
    }
  }
}

ImageView fit_square(const ImageView& image, int size, Image& out, ResizeScratch& scratch) {
  if (image.height == size && image.width == size) return image;
  const int64_t shorter = std::min(image.height, image.width);
  const int height = static_cast<int>(image.height * int64_t{size} / shorter);
  const int width = static_cast<int>(image.width * int64_t{size} / shorter);
  out.reset(size, size, image.channels);
  resize(image, {0, 0, static_cast<float>(image.width), static_cast<float>(image.height)}, height, width,
         {(height - size) / 2, (width - size) / 2, size, size}, Filter::bilinear, out.data(), scratch);
  return out.view();
}

void fit_square(MemoryDataset::Content& content, int size) {
  if (content.height == size && content.width == size) return;
  const size_t from = static_cast<size_t>(content.height) * content.width * content.channels;
  const size_t to = static_cast<size_t>(size) * size * content.channels;
  std::vector<uint8_t> pixels(content.labels.size() * to);
  Image fitted;
  ResizeScratch scratch;
  for (size_t i = 0; i < content.labels.size(); ++i) {
    const ImageView image{content.pixels.data() + i * from, content.height, content.width, content.channels,
                          ptrdiff_t{content.width} * content.channels};
    const ImageView square = fit_square(image, size, fitted, scratch);
    std::memcpy(pixels.data() + i * to, square.pixels, to);
  }
  content.pixels = std::move(pixels);
  content.height = content.width = size;
}

std::unique_ptr<Dataset> open_dataset(const std::string& text, const DecodeLimits& limits) {
  const DatasetSpec spec = parse_spec(text);
  std::unique_ptr<Dataset> set;
  if (spec.kind == "cifar10" || spec.kind == "cifar100") {
    set = open_cifar(spec);
  } else if (spec.kind == "idx") {
    set = open_idx(spec);
  } else if (spec.kind == "folder") {
    set = open_folder(spec, limits);
  } else if (spec.kind == "list") {
    set = open_list(spec, limits);
  } else if (spec.kind == "tar") {
    set = open_tar(spec, limits);
  } else if (spec.kind == "pack") {
    set = open_pack(spec, limits);
  } else {
    set = open_synthetic(spec);
  }
  if (spec.limit > 0) set->limit(spec.limit);
  if (spec.holdout > 0) {
    set->select(held_out(set->labels_, set->class_count(), spec.holdout, spec.part_holdout));
    if (set->size() == 0) throw Error(cat("data set {}: holdout={} leaves no image", text, spec.holdout));
  }
  if (!spec.labels) {
    std::fill(set->labels_.begin(), set->labels_.end(), -1);
    set->class_names_.clear();
  }
  return set;
}

}  // namespace csml
