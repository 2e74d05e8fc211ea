// Any bytes as a safetensors header, and as a whole file.
#include "engine/safetensors.h"

#include "tests/fuzz/target.h"

using namespace csml;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  static const fuzz::Scratch scratch;
  fuzz::Input input(data, bytes);
  // The first byte is the size of the data section, the rest is the header.
  const size_t data_bytes = input.byte();
  fuzz::error_of([&] {
    const SafetensorsHeader header = parse_safetensors_header(fuzz::text_of(input.rest()), data_bytes, "fuzz");
    uint64_t sum = 0;
    for (const auto& [name, info] : header.arrays) sum += info.bytes;
    fuzz::require(sum == data_bytes, "the arrays cover the data section exactly");
  });

  const auto path = scratch.put("file", fuzz::text_of({data, bytes}));
  fuzz::error_of([&] {
    const SafetensorsFile file = SafetensorsFile::open(path);
    for (const auto& [name, info] : file.arrays()) {
      const NamedArray array = file.read(name);
      fuzz::require(array.data.size() == info.bytes &&
                        array.data.size() == static_cast<size_t>(array.shape.size()) * size_of(array.dtype),
                    "an array has as many bytes as its shape and type need");
    }
  });
  return 0;
}
