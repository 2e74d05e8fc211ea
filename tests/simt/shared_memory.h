// SharedMemory: a block's shared memory with, for every word, who touched it last: finds reads of words never written,
// races, and reads of asynchronous copies before their wait.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace csml::simt {

/// A part of shared memory that a kernel uses as an array.
struct SharedArray {
  const char* name = "";
  uint32_t offset = 0;   // bytes from the start of the block's shared memory
  int count = 0;         // elements
  uint32_t element = 4;  // bytes
};

enum class Access : uint8_t { read, write, atomic };

class SharedMemory {
 public:
  /// Who accesses: the thread and how many barriers of its warp it has passed.
  struct Who {
    int thread = 0;
    uint32_t warp_barriers = 0;
  };

  /// Before a launch: forgets static arrays; the first dynamic_bytes belong to dynamic arrays.
  void begin_launch(size_t dynamic_bytes);
  /// Nothing is initialised any more.
  void begin_block();
  /// What happened before is ordered before what happens from now on.
  void block_barrier() { ++epoch_; }

  /// The static array whose declaration is known by `key`; the same for all threads of a launch. Throws text.
  SharedArray static_array(const void* key, const char* name, int count, uint32_t element, uint32_t alignment);
  SharedArray dynamic_array(const char* name, int64_t byte_offset, int count, uint32_t element, uint32_t alignment);

  /// Checks bounds and history of `count` elements from i on and notes the access; the bytes are at data(). Empty, or
  /// what is wrong.
  std::string access(const SharedArray& a, int64_t i, int count, Access kind, Who who);
  std::byte* data(const SharedArray& a, int64_t i) {
    return bytes_.data() + a.offset + static_cast<size_t>(i) * a.element;
  }
  /// An asynchronous copy into elements was issued; access() as write must have been called before.
  void copy_issued(const SharedArray& a, int64_t i, int count, bool pending, Who who);

 private:
  /// The last accesses of one kind to a word. Accesses that are not ordered among themselves are kept as their union.
  struct Record {
    uint32_t epoch = 0;  // block barriers; 0 = never
    uint32_t warp_barriers = 0;
    int16_t thread = 0;  // kMany: several
    int16_t warp = 0;    // kMany: several
    bool atomic = false;
  };
  struct Cell {
    Record write, read;
    bool pending = false;
  };
  static constexpr int16_t kMany = -1;

  bool ordered(const Record& r, Who who) const;
  void note(Record& r, Who who, bool atomic) const;
  std::string problem(const Cell& cell, Access kind, Who who) const;
  void refine(uint32_t element);

  std::vector<std::byte> bytes_;
  std::vector<Cell> cells_;
  int shift_ = 2;  // one cell for 2^shift_ bytes: a word, less where a launch has smaller elements
  uint32_t epoch_ = 1, block_start_ = 1;
  size_t dynamic_bytes_ = 0, used_ = 0, static_bytes_ = 0;
  struct Static {
    const void* key;
    SharedArray array;
  };
  std::vector<Static> statics_;
};

}  // namespace csml::simt
