#include <algorithm>

#include "data/pack.h"
#include "engine/json.h"
#include "engine/safetensors.h"
#include "kernels/check.h"

namespace csml {
namespace fs = std::filesystem;

PackWriter::PackWriter(Options options) : options_(std::move(options)) {
  std::error_code error;
  fs::create_directories(options_.folder, error);
  if (error) throw Error(cat("cannot create the folder {}: {}", options_.folder.string(), error.message()));
  if (fs::exists(options_.folder / kPackFile, error))
    throw Error(cat("{} holds a pack already; give another folder", options_.folder.string()));
}

void PackWriter::add(std::span<const uint8_t> bytes, int label, const std::string& name) {
  const auto pixels = static_cast<size_t>(options_.height) * static_cast<size_t>(options_.width) *
                      static_cast<size_t>(options_.channels);
  CHECK(pixels == 0 || bytes.size() == pixels, "{}: {} bytes of pixels, expected {}", name, bytes.size(), pixels);
  if (!labels_.empty() && data_.size() + bytes.size() > options_.shard_bytes) write_shard();
  data_.insert(data_.end(), bytes.begin(), bytes.end());
  names_.insert(names_.end(), name.begin(), name.end());
  labels_.push_back(label);
  checksums_.push_back(static_cast<int64_t>(hash_bytes(bytes.data(), bytes.size(), 0)));
  offsets_.push_back(static_cast<int64_t>(data_.size()));
  name_offsets_.push_back(static_cast<int64_t>(names_.size()));
  ++images_;
  bytes_ += bytes.size();
}

void PackWriter::write_shard() {
  const auto n = static_cast<int64_t>(labels_.size());
  std::vector<HostArray> arrays{{"labels", DType::i64, Shape{n}, labels_.data()},
                                {"checksums", DType::i64, Shape{n}, checksums_.data()},
                                {"names", DType::u8, Shape{static_cast<int64_t>(names_.size())}, names_.data()},
                                {"name_offsets", DType::i64, Shape{n + 1}, name_offsets_.data()}};
  if (options_.height > 0) {
    arrays.push_back({"pixels", DType::u8, Shape{n, options_.height, options_.width, options_.channels}, data_.data()});
  } else {
    arrays.push_back({"images", DType::u8, Shape{static_cast<int64_t>(data_.size())}, data_.data()});
    arrays.push_back({"offsets", DType::i64, Shape{n + 1}, offsets_.data()});
  }
  const std::string file = cat("shard-{:05}.safetensors", shards_.size());
  shards_.push_back({file, n, write_safetensors(options_.folder / file, arrays, {{"format", kPackFormat}})});
  data_.clear(), names_.clear(), labels_.clear(), checksums_.clear();
  offsets_.assign(1, 0), name_offsets_.assign(1, 0);
}

void PackWriter::finish() {
  if (!labels_.empty()) write_shard();
  CHECK(images_ > 0, "{}: there is no image to pack", options_.source);
  nlohmann::json shards = nlohmann::json::array();
  for (const Shard& shard : shards_)
    shards.push_back({{"file", shard.file},
                      {"images", shard.images},
                      {"bytes", shard.digest.bytes},
                      {"xxh3_128", shard.digest.hex}});
  nlohmann::json pixels;
  if (options_.height > 0) pixels = {options_.height, options_.width, options_.channels};
  const nlohmann::json pack{
      {"format", kPackFormat}, {"version", kPackVersion},   {"images", images_}, {"classes", options_.class_names},
      {"pixels", pixels},      {"source", options_.source}, {"shards", shards}};
  write_text_file(options_.folder / kPackFile, json_line(pack) + "\n");
}

}  // namespace csml
