// Strict reader and writer of safetensors files: 8 bytes of header length (little endian), a JSON header, raw arrays.
// Source: the format's description at https://github.com/huggingface/safetensors ("Format").
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/file.h"
#include "kernels/types.h"

namespace csml {

/// An array in host memory that owns its bytes.
struct NamedArray {
  std::string name;
  DType dtype = DType::f32;
  Shape shape{0};
  std::vector<std::byte> data;
};

/// An array in host memory that somebody else owns: what a writer takes.
struct HostArray {
  std::string name;
  DType dtype = DType::f32;
  Shape shape{0};
  const void* data = nullptr;  // may be null only when the array is empty
};

/// What a header says of one array. `offset` counts bytes from the start of the data section.
struct ArrayInfo {
  DType dtype = DType::f32;
  Shape shape{0};
  uint64_t offset = 0;
  size_t bytes = 0;
};

/// Free text of a file, such as {"format": "pt"}.
using Metadata = std::map<std::string, std::string>;

struct SafetensorsHeader {
  std::map<std::string, ArrayInfo> arrays;
  Metadata metadata;
};

/// Parses and validates a JSON header against the size of the data section: no key twice, known dtypes, at most four
/// dimensions, sizes without overflow that agree with the offsets, arrays that cover the data section exactly, without
/// gap or overlap. Allocates in proportion to the header's length only. Throws Error that names `file` and the array.
SafetensorsHeader parse_safetensors_header(std::string_view json, uint64_t data_bytes, const std::string& file);

/// An open file. Opening validates everything but the arrays' values; arrays are read on demand.
class SafetensorsFile {
 public:
  /// Longest header accepted, the same limit as the reference implementation's.
  static constexpr uint64_t kMostHeaderBytes = 100'000'000;

  /// Throws Error that names the file (and the array) and what is wrong with it.
  static SafetensorsFile open(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return path_; }
  const Metadata& metadata() const { return header_.metadata; }
  /// All arrays, ordered by name.
  const std::map<std::string, ArrayInfo>& arrays() const { return header_.arrays; }
  std::vector<std::string> names() const;
  bool contains(const std::string& name) const { return header_.arrays.contains(name); }
  /// Throws Error when there is no array of that name.
  const ArrayInfo& info(const std::string& name) const;
  /// Where an array's bytes start in the file.
  uint64_t position(const std::string& name) const { return data_start_ + info(name).offset; }

  /// Copies an array to `destination`; `bytes` must be its exact size.
  void read(const std::string& name, void* destination, size_t bytes) const;
  NamedArray read(const std::string& name) const;
  /// Rows [first, first + count) of dimension 0 alone; `bytes` must be their exact size.
  void read_rows(const std::string& name, int64_t first, int64_t count, void* destination, size_t bytes) const;

 private:
  std::filesystem::path path_;
  FileDescriptor file_;
  uint64_t data_start_ = 0;
  SafetensorsHeader header_;
};

/// Writes a file that is whole or absent (AtomicFile). Arrays are laid out by element size, largest first, then by
/// name, which keeps each aligned to its element size; the header is padded with spaces to a multiple of 8 bytes.
/// Throws Error: a name twice, text that is not UTF-8, or a failed write (the destination is then untouched).
FileDigest write_safetensors(const std::filesystem::path& path, std::span<const HostArray> arrays,
                             const Metadata& metadata = {});

}  // namespace csml
