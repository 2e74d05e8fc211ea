// Any bytes as the index of a pack, and as its shard, whose index is then written to fit.
#include "data/pack.h"

#include "data/kinds.h"
#include "engine/json.h"
#include "engine/safetensors.h"
#include "tests/fuzz/dataset_checks.h"
#include "tests/fuzz/target.h"

using namespace csml;

namespace {

void open(const std::string& folder) {
  fuzz::error_of([&] {
    const auto set = open_pack({.kind = "pack", .path = folder}, {.pixels = 1 << 16});
    fuzz::error_of([&] { set->verify(); });
    fuzz::check_dataset(*set);
  });
}

/// An index of one shard, of files or (pixels) of raw pixels.
std::string index_for(const std::filesystem::path& shard, bool pixels) {
  int64_t images = 0;
  nlohmann::json extent;
  fuzz::error_of([&] {
    const SafetensorsFile file = SafetensorsFile::open(shard);
    images = file.info("labels").shape.size();
    if (pixels) extent = {file.info("pixels").shape[1], file.info("pixels").shape[2], file.info("pixels").shape[3]};
  });
  const FileDigest digest = digest_of(shard);
  return json_line({{"format", kPackFormat},
                    {"version", kPackVersion},
                    {"images", images},
                    {"classes", {"a", "b"}},
                    {"pixels", extent},
                    {"shards", {{{"file", "shard"}, {"bytes", digest.bytes}, {"xxh3_128", digest.hex}}}}});
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  static const fuzz::Scratch scratch;
  fuzz::Input input(data, bytes);
  const uint8_t kind = input.byte();
  const std::string folder = scratch.folder().string();
  if (kind % 3 == 0) {
    scratch.put(kPackFile, fuzz::text_of(input.rest()));
  } else {
    const auto shard = scratch.put("shard", fuzz::text_of(input.rest()));
    scratch.put(kPackFile, index_for(shard, kind % 3 == 2));
  }
  open(folder);
  return 0;
}
