// libFuzzer target: any bytes as a safetensors header and as a whole file. Build and run:
//   CXX=clang++ cmake -S . -B build/fuzz -G Ninja -DCSML_FUZZ=ON -DCSML_TESTS=OFF -DCSML_NATIVE=OFF
//   cmake --build build/fuzz --target safetensors_fuzz && build/fuzz/safetensors_fuzz -max_total_time=60 -max_len=4096
#include <unistd.h>

#include <cstdlib>

#include "engine/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  // The first byte is the size of the data section, the rest is the header.
  if (bytes > 0) {
    try {
      const std::string_view json(reinterpret_cast<const char*>(data) + 1, bytes - 1);
      const csml::SafetensorsHeader header = csml::parse_safetensors_header(json, data[0], "fuzz");
      uint64_t sum = 0;
      for (const auto& [name, info] : header.arrays) sum += info.bytes;
      if (sum != data[0]) std::abort();
    } catch (const csml::Error&) {}
  }
  static const std::filesystem::path path =
      std::filesystem::temp_directory_path() / csml::cat("csml_fuzz_{}", ::getpid());
  try {
    csml::write_text_file(path, std::string(reinterpret_cast<const char*>(data), bytes));
    const csml::SafetensorsFile file = csml::SafetensorsFile::open(path);
    for (const std::string& name : file.names()) file.read(name);
  } catch (const csml::Error&) {}
  ::unlink(path.c_str());
  return 0;
}
