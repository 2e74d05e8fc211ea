// Any bytes as a tar archive, and as an archive of images. Headers carry checksums, which changed bytes do not match;
// so every archive is tried a second time with the right ones.
#include "data/tar.h"

#include "data/kinds.h"
#include "tests/fuzz/dataset_checks.h"
#include "tests/fuzz/target.h"

using namespace csml;

namespace {

constexpr size_t kBlock = 512;

/// Sets the checksum of every block right that could be a header.
void repair(std::string& bytes) {
  for (size_t at = 0; at + kBlock <= bytes.size(); at += kBlock) {
    if (bytes.compare(at + 257, 5, "ustar") != 0) continue;
    bytes.replace(at + 148, 8, 8, ' ');
    unsigned sum = 0;
    for (size_t i = 0; i < kBlock; ++i) sum += static_cast<unsigned char>(bytes[at + i]);
    bytes.replace(at + 148, 7, cat("{:06o}", sum) + '\0');
  }
}

void check(const std::string& path, size_t size) {
  fuzz::error_of([&] {
    for (const TarMember& file : list_tar(path).files)
      fuzz::require(file.offset <= size && file.bytes <= size - file.offset && file.name.size() <= 4096,
                    "a member lies in the archive");
  });
  fuzz::error_of([&] { fuzz::check_dataset(*open_tar({.kind = "tar", .path = path}, {.pixels = 1 << 16})); });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  static const fuzz::Scratch scratch;
  std::string archive(fuzz::text_of({data, bytes}));
  check(scratch.put("a.tar", archive).string(), archive.size());
  repair(archive);
  check(scratch.put("a.tar", archive).string(), archive.size());
  return 0;
}
