// The MNIST family: IDX files (LeCun), plain or gzipped. Big-endian header 00 00 08 RANK, then RANK extents of 4 bytes.
#include <zlib.h>

#include <filesystem>

#include "data/kinds.h"
#include "data/memory_dataset.h"
#include "data/square.h"
#include "kernels/check.h"

namespace csml {
namespace fs = std::filesystem;
namespace {

constexpr size_t kMaxBytes = size_t{4} << 30;

/// train-images-idx3-ubyte, train-images.idx3-ubyte, each also with .gz; empty when absent.
std::string find_file(const std::string& directory, const std::string& stem, const std::string& suffix) {
  std::error_code error;
  for (const char* joint : {"-", "."})
    for (const char* gz : {"", ".gz"}) {
      const fs::path path = fs::path(directory) / (stem + joint + suffix + gz);
      if (fs::exists(path, error)) return path.string();
    }
  return {};
}

struct Idx {
  std::vector<uint32_t> extent;
  std::vector<uint8_t> bytes;
};

/// gzread also reads files that are not compressed.
Idx read_idx(const std::string& path, int rank) {
  struct Closer {
    gzFile file;
    ~Closer() { gzclose(file); }
  };
  std::error_code error;
  if (!fs::is_regular_file(path, error)) throw Error(cat("{}: not a regular file", path));  // a pipe would hang
  gzFile opened = gzopen(path.c_str(), "rb");
  if (!opened) throw Error(cat("{}: cannot open the file", path));
  const Closer closer{opened};
  const auto damaged = [&path] { return Error(cat("{}: truncated or damaged IDX file", path)); };
  gzbuffer(opened, 1 << 17);
  const auto read = [&](void* to, size_t count) {
    for (size_t done = 0; done < count;) {
      const auto step = static_cast<unsigned>(std::min<size_t>(count - done, size_t{1} << 24));
      const int got = gzread(opened, static_cast<uint8_t*>(to) + done, step);
      if (got <= 0) throw damaged();
      done += static_cast<size_t>(got);
    }
  };
  uint8_t head[4];
  read(head, 4);
  if (head[0] != 0 || head[1] != 0 || head[2] != 8 || head[3] != rank)
    throw Error(cat("{}: not an IDX file of bytes with {} dimensions (it begins with {:02x} {:02x} {:02x} {:02x})",
                    path, rank, head[0], head[1], head[2], head[3]));
  Idx idx;
  size_t total = 1;
  for (int i = 0; i < rank; ++i) {
    uint8_t b[4];
    read(b, 4);
    const uint32_t extent = uint32_t{b[0]} << 24 | uint32_t{b[1]} << 16 | uint32_t{b[2]} << 8 | uint32_t{b[3]};
    if (extent == 0 || total > kMaxBytes / extent)
      throw Error(cat("{}: the header gives an extent of {}: empty or larger than {} bytes", path, extent, kMaxBytes));
    idx.extent.push_back(extent);
    total *= extent;
  }
  // Grown in steps: a false header must not cost memory that the file does not fill.
  constexpr size_t kStep = size_t{1} << 24;
  while (idx.bytes.size() < total) {
    const size_t done = idx.bytes.size(), count = std::min(kStep, total - done);
    idx.bytes.resize(done + count);
    read(idx.bytes.data() + done, count);
  }
  uint8_t extra;
  if (gzread(opened, &extra, 1) > 0) throw Error(cat("{}: longer than its header says", path));
  // Behind the data of a gzip file stands its checksum; without it zlib reports an end like any other, and an error.
  int code = Z_OK;
  gzerror(opened, &code);
  if (code != Z_OK) throw damaged();
  return idx;
}

}  // namespace

std::unique_ptr<Dataset> open_idx(const DatasetSpec& spec, const DecodeLimits&) {
  const std::string part = spec.test ? "t10k" : "train";
  const std::string path = find_file(spec.path, part + "-images", "idx3-ubyte");
  if (path.empty()) throw Error(cat("data set idx:{}: {}-images-idx3-ubyte (or .gz) is not there", spec.path, part));
  const Idx images = read_idx(path, 3);
  const size_t count = images.extent[0];
  const int height = static_cast<int>(images.extent[1]), width = static_cast<int>(images.extent[2]);
  if (height > 4096 || width > 4096) throw Error(cat("{}: images of {} x {} pixels", path, width, height));

  MemoryDataset::Content content{"idx", spec.path, height, width, spec.channels, {}, {}, {}};
  content.labels.assign(count, -1);
  const std::string label_path = find_file(spec.path, part + "-labels", "idx1-ubyte");
  if (!label_path.empty()) {
    const Idx labels = read_idx(label_path, 1);
    if (labels.extent[0] != count)
      throw Error(cat("{}: {} labels for the {} images of {}", label_path, labels.extent[0], count, path));
    int classes = 0;
    for (size_t i = 0; i < count; ++i) {
      content.labels[i] = labels.bytes[i];
      classes = std::max(classes, labels.bytes[i] + 1);
    }
    for (int c = 0; c < classes; ++c) content.class_names.push_back(cat("{}", c));
  }
  const size_t plane = static_cast<size_t>(height) * width;
  content.pixels.resize(count * plane * static_cast<size_t>(spec.channels));
  for (size_t i = 0; i < count; ++i)
    store_pixels({images.bytes.data() + i * plane, height, width, 1, width}, spec.channels,
                 content.pixels.data() + i * plane * static_cast<size_t>(spec.channels));
  if (spec.size > 0) fit_square(content, spec.size);
  return std::make_unique<MemoryDataset>(std::move(content));
}

}  // namespace csml
