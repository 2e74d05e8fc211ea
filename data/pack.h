// Packs: a data set in a few large files, for storage that is slow with many small ones.
//
//   DIR/pack.json                  what the pack is; written last, so that a folder without it is no pack
//   DIR/shard-00000.safetensors …  whole images, in the data set's order
//
// pack.json: {"format": "csml-pack", "version": 1, "images": N, "classes": [names], "pixels": null or [H, W, C],
//             "source": text, "shards": [{"file", "images", "bytes", "xxh3_128"}]}
// A shard of n images holds
//   labels     I64 [n]       class, or -1
//   checksums  I64 [n]       XXH3-64 of each image's bytes
//   names      U8 [sum], name_offsets I64 [n + 1]   image i's name is names[name_offsets[i] … name_offsets[i + 1])
//   and either images U8 [sum], offsets I64 [n + 1]   the bytes of image files, as they were
//   or         pixels U8 [n, H, W, C]                 raw pixels of one extent
// Arrays lie aligned and uncompressed in the file: other programs may map it.
#pragma once

#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "data/dataset.h"
#include "engine/file.h"

namespace csml {

inline constexpr const char* kPackFile = "pack.json";
inline constexpr const char* kPackFormat = "csml-pack";
inline constexpr int kPackVersion = 1;

/// Writes a pack, one shard in memory at a time.
class PackWriter {
 public:
  struct Options {
    std::filesystem::path folder;  // must not hold a pack; created where it is missing
    std::vector<std::string> class_names = {};
    std::string source = {};                  // what was packed, for people
    int height = 0, width = 0, channels = 0;  // of raw pixels; 0: bytes of image files
    uint64_t shard_bytes = uint64_t{256} << 20;
  };
  explicit PackWriter(Options options);

  /// The next image: its file's bytes, or height * width * channels pixels.
  void add(std::span<const uint8_t> bytes, int label, const std::string& name);
  /// Writes the last shard and pack.json. Nothing may be added behind it.
  void finish();

  int64_t images() const { return images_; }
  uint64_t bytes() const { return bytes_; }
  size_t shards() const { return shards_.size(); }

 private:
  struct Shard {
    std::string file;
    int64_t images;
    FileDigest digest;
  };
  void write_shard();

  Options options_;
  std::vector<uint8_t> data_, names_;
  std::vector<int64_t> labels_, checksums_, offsets_{0}, name_offsets_{0};
  std::vector<Shard> shards_;
  int64_t images_ = 0;
  uint64_t bytes_ = 0;
};

}  // namespace csml
