// CIFAR-10 and CIFAR-100, binary version (Krizhevsky 2009): records of one (CIFAR-100: coarse, fine) label byte and
// 3072 bytes of pixels, planar RGB, 32 x 32.
#include <algorithm>
#include <filesystem>

#include "data/kinds.h"
#include "data/memory_dataset.h"
#include "data/square.h"
#include "kernels/check.h"

namespace csml {
namespace fs = std::filesystem;
namespace {

constexpr int kSide = 32;
constexpr size_t kPlane = kSide * kSide;

/// Non-empty lines of a names file; numbers when it is absent or has another count.
std::vector<std::string> class_names(const fs::path& file, int count) {
  std::vector<uint8_t> bytes;
  std::vector<std::string> names;
  std::error_code error;
  if (fs::exists(file, error)) {
    read_file(file.string(), bytes);
    std::string line;
    for (uint8_t b : bytes) {
      if (b != '\n' && b != '\r') {
        line += static_cast<char>(b);
      } else if (!line.empty()) {
        names.push_back(std::move(line));
        line.clear();
      }
    }
    if (!line.empty()) names.push_back(std::move(line));
  }
  if (static_cast<int>(names.size()) != count) {
    names.clear();
    for (int i = 0; i < count; ++i) names.push_back(cat("{}", i));
  }
  return names;
}

}  // namespace

std::unique_ptr<Dataset> open_cifar(const DatasetSpec& spec, const DecodeLimits&) {
  const bool hundred = spec.kind == "cifar100";
  std::vector<std::string> files;
  if (hundred) {
    files = {spec.test ? "test.bin" : "train.bin"};
  } else if (spec.test) {
    files = {"test_batch.bin"};
  } else {
    for (int i = 1; i <= 5; ++i) files.push_back(cat("data_batch_{}.bin", i));
  }
  const std::string directory = find_directory(spec.path, hundred ? "cifar-100-binary" : "cifar-10-batches-bin", files);
  if (directory.empty())
    throw Error(cat("data set {}:{}: {} is not there (the binary version of the files is needed)", spec.kind, spec.path,
                    files.front()));

  const size_t head = hundred ? 2 : 1, record = head + 3 * kPlane;
  const int classes = hundred ? 100 : 10;
  MemoryDataset::Content content{spec.kind, directory, kSide, kSide, spec.channels, {}, {}, {}};
  std::vector<uint8_t> bytes, interleaved(3 * kPlane);
  DecodeLimits limits;
  limits.file_bytes = size_t{1} << 30;
  for (const std::string& file : files) {
    const std::string path = (fs::path(directory) / file).string();
    std::error_code error;
    if (!fs::exists(path, error)) continue;  // a subset may hold fewer batches
    try {
      read_file(path, bytes, limits);
    } catch (const Error& e) { throw Error(cat("{}: {}", path, e.what())); }
    if (bytes.empty() || bytes.size() % record != 0)
      throw Error(cat("{}: {} bytes is not a whole number of {}-byte records: truncated or not {}", path, bytes.size(),
                      record, spec.kind));
    const size_t count = bytes.size() / record, first = content.labels.size();
    content.pixels.resize((first + count) * kPlane * static_cast<size_t>(spec.channels));
    for (size_t i = 0; i < count; ++i) {
      const uint8_t* in = bytes.data() + i * record;
      const int label = in[head - 1];
      if (label >= classes) throw Error(cat("{}: record {} has label {}: not {}", path, i, label, spec.kind));
      content.labels.push_back(label);
      in += head;
      for (size_t p = 0; p < kPlane; ++p)
        for (size_t c = 0; c < 3; ++c) interleaved[3 * p + c] = in[c * kPlane + p];
      store_pixels({interleaved.data(), kSide, kSide, 3, 3 * kSide}, spec.channels,
                   content.pixels.data() + (first + i) * kPlane * static_cast<size_t>(spec.channels));
    }
  }
  content.class_names =
      class_names(fs::path(directory) / (hundred ? "fine_label_names.txt" : "batches.meta.txt"), classes);
  if (spec.size > 0) fit_square(content, spec.size);
  return std::make_unique<MemoryDataset>(std::move(content));
}

}  // namespace csml
