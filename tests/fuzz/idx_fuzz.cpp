// Any bytes as IDX files of images and labels, plain, gzipped by the target, or as gzip files.
#include <zlib.h>

#include "data/kinds.h"
#include "tests/fuzz/dataset_checks.h"
#include "tests/fuzz/target.h"

using namespace csml;

namespace {

std::string gzipped(std::string_view bytes) {
  z_stream stream{};
  fuzz::require(deflateInit2(&stream, 1, Z_DEFLATED, MAX_WBITS + 16, 8, Z_DEFAULT_STRATEGY) == Z_OK, "zlib starts");
  std::string packed(deflateBound(&stream, bytes.size()), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
  stream.avail_in = static_cast<uInt>(bytes.size());
  stream.next_out = reinterpret_cast<Bytef*>(packed.data());
  stream.avail_out = static_cast<uInt>(packed.size());
  fuzz::require(deflate(&stream, Z_FINISH) == Z_STREAM_END, "zlib packs");
  packed.resize(stream.total_out);
  deflateEnd(&stream);
  return packed;
}

/// Whether zlib takes the bytes for whole members of a gzip file, checksums included.
bool whole_gzip(std::string_view bytes) {
  char piece[4096];
  while (!bytes.empty()) {
    z_stream stream{};
    inflateInit2(&stream, MAX_WBITS + 16);
    stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
    stream.avail_in = static_cast<uInt>(bytes.size());
    int result;
    do {
      stream.next_out = reinterpret_cast<Bytef*>(piece);
      stream.avail_out = sizeof piece;
      result = inflate(&stream, Z_NO_FLUSH);
    } while (result == Z_OK);
    bytes.remove_prefix(bytes.size() - stream.avail_in);
    inflateEnd(&stream);
    if (result != Z_STREAM_END) return false;
    // What follows a member and is no other one is padding to gzread.
    if (bytes.size() < 2 || bytes[0] != '\x1f' || bytes[1] != '\x8b') return true;
  }
  return true;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  static const fuzz::Scratch scratch;
  fuzz::Input input(data, bytes);
  const uint8_t switches = input.byte();
  const bool pack = switches & 1, labelled = switches & 2;
  const std::string labels = "train-labels-idx1-ubyte", images = "train-images.idx3-ubyte";
  scratch.remove(labels);
  if (labelled) {
    const size_t count = input.byte();
    scratch.put(labels, fuzz::text_of(input.take(count)));
  }
  const std::string file = pack ? gzipped(fuzz::text_of(input.rest())) : std::string(fuzz::text_of(input.rest()));
  scratch.put(images, file);
  const DatasetSpec spec{
      .kind = "idx", .path = scratch.folder().string(), .size = switches & 4 ? 3 : 0, .channels = switches & 8 ? 1 : 3};
  fuzz::error_of([&] {
    const auto set = open_idx(spec, {});
    fuzz::require(!file.starts_with("\x1f\x8b") || whole_gzip(file), "a damaged gzip file is refused");
    fuzz::check_dataset(*set);
  });
  return 0;
}
