// STL-10, binary version (Coates, Lee & Ng 2011): train_X.bin, test_X.bin and unlabeled_X.bin hold images of 3 planes of
// 96 x 96 bytes, each plane column by column; train_y.bin and test_y.bin a byte from 1 to 10 an image.
#include <algorithm>
#include <filesystem>

#include "data/kinds.h"
#include "data/memory_dataset.h"
#include "data/square.h"
#include "engine/file.h"
#include "kernels/check.h"

namespace csml {
namespace fs = std::filesystem;
namespace {

constexpr int kSide = 96, kClasses = 10;
constexpr size_t kPlane = kSide * kSide, kRecord = 3 * kPlane;

/// The lines of class_names.txt; numbers where it is absent or has another count.
std::vector<std::string> class_names(const fs::path& file) {
  std::vector<std::string> names;
  std::error_code error;
  if (fs::exists(file, error)) {
    std::string line;
    for (const char c : read_text_file(file, 4096) + "\n") {
      if (c != '\n' && c != '\r')
        line += c;
      else if (!line.empty())
        names.push_back(std::move(line)), line.clear();
    }
  }
  if (names.size() == kClasses) return names;
  names.clear();
  for (int c = 1; c <= kClasses; ++c) names.push_back(cat("{}", c));
  return names;
}

size_t images_in(const fs::path& path) {
  std::error_code error;
  const uintmax_t bytes = fs::file_size(path, error);
  if (error) throw Error(cat("{}: {}", path.string(), error.message()));
  if (bytes == 0 || bytes % kRecord != 0)
    throw Error(cat("{}: {} bytes is not a whole number of {}-byte images: truncated or not STL-10", path.string(),
                    bytes, kRecord));
  return bytes / kRecord;
}

void read_labels(const fs::path& path, std::vector<int>& labels) {
  const std::string text = read_text_file(path, labels.size() + 1);
  if (text.size() != labels.size())
    throw Error(cat("{}: {} labels for {} images", path.string(), text.size(), labels.size()));
  for (size_t i = 0; i < labels.size(); ++i) {
    const int label = static_cast<uint8_t>(text[i]);
    if (label < 1 || label > kClasses)
      throw Error(cat("{}: image {} has label {}, not one from 1 to {}", path.string(), i, label, kClasses));
    labels[i] = label - 1;
  }
}

}  // namespace

std::unique_ptr<Dataset> open_stl10(const DatasetSpec& spec, const DecodeLimits&) {
  const std::string part = spec.unlabeled ? "unlabeled" : spec.test ? "test" : "train", file = part + "_X.bin";
  const fs::path directory = find_directory(spec.path, "stl10_binary", {file});
  if (directory.empty())
    throw Error(cat("data set stl10:{}: {} is not there (the binary version of the files is needed)", spec.path, file));
  const fs::path path = directory / file;
  const size_t count = images_in(path);
  MemoryDataset::Content content{"stl10", directory.string(), kSide, kSide, spec.channels, {}, {}, {}};
  content.labels.assign(count, -1);
  if (!spec.unlabeled) {
    read_labels(directory / (part + "_y.bin"), content.labels);
    content.class_names = class_names(directory / "class_names.txt");
  }
  content.pixels.resize(count * kPlane * static_cast<size_t>(spec.channels));
  constexpr size_t kBlock = 64;  // images read at once
  std::vector<uint8_t> stored(kBlock * kRecord), upright(kRecord);
  for (size_t i = 0; i < count; ++i) {
    if (i % kBlock == 0) read_file_part(path, i * kRecord, stored.data(), std::min(kBlock, count - i) * kRecord);
    const uint8_t* planes = stored.data() + i % kBlock * kRecord;
    for (size_t y = 0; y < kSide; ++y)
      for (size_t x = 0; x < kSide; ++x)
        for (size_t c = 0; c < 3; ++c) upright[3 * (y * kSide + x) + c] = planes[c * kPlane + x * kSide + y];
    store_pixels({upright.data(), kSide, kSide, 3, 3 * kSide}, spec.channels,
                 content.pixels.data() + i * kPlane * static_cast<size_t>(spec.channels));
  }
  if (spec.size > 0) fit_square(content, spec.size);
  return std::make_unique<MemoryDataset>(std::move(content));
}

}  // namespace csml
