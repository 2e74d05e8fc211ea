#include "tests/simt/shared_memory.h"

#include <algorithm>

#include "kernels/check.h"
#include "kernels/cuda/values.h"

namespace csml::simt {

using cuda::kMaxSharedBytes;
using cuda::kMaxStaticSharedBytes;
using cuda::kWarp;

void SharedMemory::begin_launch(size_t dynamic_bytes) {
  if (bytes_.empty()) bytes_.resize(kMaxSharedBytes);
  shift_ = 2;
  cells_.resize(kMaxSharedBytes >> shift_);
  std::fill(cells_.begin(), cells_.begin() + static_cast<int64_t>((used_ + 3) >> shift_), Cell{});
  statics_.clear();
  dynamic_bytes_ = used_ = dynamic_bytes;
  static_bytes_ = 0;
}

void SharedMemory::begin_block() {
  block_start_ = ++epoch_;
  for (size_t i = 0; i < std::min(cells_.size(), (used_ >> shift_) + 1); ++i) cells_[i].pending = false;
}

SharedArray SharedMemory::static_array(const void* key, const char* name, int count, uint32_t element,
                                       uint32_t alignment) {
  for (const Static& s : statics_)
    if (s.key == key) return s.array;
  alignment = std::max(alignment, 16u);
  const size_t begin = (used_ + alignment - 1) / alignment * alignment, bytes = static_cast<size_t>(count) * element;
  static_bytes_ += bytes;
  CHECK(static_bytes_ <= kMaxStaticSharedBytes, "static shared memory: {} bytes with {}, at most {}", static_bytes_,
        name, kMaxStaticSharedBytes);
  CHECK(begin + bytes <= kMaxSharedBytes, "shared memory: {} bytes with {}, at most {}", begin + bytes, name,
        kMaxSharedBytes);
  used_ = begin + bytes;
  refine(element);
  statics_.push_back({key, {name, static_cast<uint32_t>(begin), count, element}});
  return statics_.back().array;
}

SharedArray SharedMemory::dynamic_array(const char* name, int64_t byte_offset, int count, uint32_t element,
                                        uint32_t alignment) {
  CHECK(
      byte_offset >= 0 && count >= 0 && byte_offset + int64_t{count} * element <= static_cast<int64_t>(dynamic_bytes_),
      "dynamic shared array {}: bytes {} to {} of the {} of this launch", name, byte_offset,
      byte_offset + int64_t{count} * element, dynamic_bytes_);
  CHECK(byte_offset % alignment == 0, "dynamic shared array {}: byte offset {} is no multiple of {}", name, byte_offset,
        alignment);
  refine(element);
  return {name, static_cast<uint32_t>(byte_offset), count, element};
}

void SharedMemory::refine(uint32_t element) {
  const int wanted = element >= 4 ? 2 : element >= 2 ? 1 : 0;
  if (wanted >= shift_) return;
  const int copies = 1 << (shift_ - wanted);
  std::vector<Cell> finer(kMaxSharedBytes >> wanted);
  for (size_t i = 0; i < finer.size(); ++i) finer[i] = cells_[i / static_cast<size_t>(copies)];
  cells_ = std::move(finer);
  shift_ = wanted;
}

bool SharedMemory::ordered(const Record& r, Who who) const {
  return r.epoch != epoch_ || r.thread == who.thread ||
         (r.warp == who.thread / kWarp && r.warp_barriers < who.warp_barriers);
}

void SharedMemory::note(Record& r, Who who, bool atomic) const {
  const auto warp = static_cast<int16_t>(who.thread / kWarp);
  if (ordered(r, who)) {
    r = {epoch_, who.warp_barriers, static_cast<int16_t>(who.thread), warp, atomic};
    return;
  }
  r.thread = kMany;
  if (r.warp != warp) r.warp = kMany;
  r.warp_barriers = std::max(r.warp_barriers, who.warp_barriers);
}

std::string SharedMemory::problem(const Cell& cell, Access kind, Who who) const {
  const auto other = [](const Record& r) {
    return r.thread == kMany ? std::string("several threads") : cat("thread {}", r.thread);
  };
  const char* verb = kind == Access::read ? "reads" : kind == Access::write ? "writes" : "updates";
  if (cell.pending) return cat("{} it before the copy_wait of the copy_async of {}", verb, other(cell.write));
  if (kind != Access::write && cell.write.epoch < block_start_) return cat("{} it, which no thread has written", verb);
  if (!ordered(cell.write, who) && !(kind == Access::atomic && cell.write.atomic))
    return cat("{} it while {} wrote it with no barrier between (race)", verb, other(cell.write));
  if (kind != Access::read && !ordered(cell.read, who))
    return cat("{} it while {} read it with no barrier between (race)", verb, other(cell.read));
  return "";
}

std::string SharedMemory::access(const SharedArray& a, int64_t i, int count, Access kind, Who who) {
  if (i < 0 || i + count > a.count)
    return count == 1 ? cat("element {} of shared array {}, which has {}", i, a.name, a.count)
                      : cat("elements {} to {} of shared array {}, which has {}", i, i + count - 1, a.name, a.count);
  const size_t begin = a.offset + static_cast<size_t>(i) * a.element;
  const size_t bytes = static_cast<size_t>(count) * a.element;
  for (size_t c = begin >> shift_; c << shift_ < begin + bytes; ++c) {
    Cell& cell = cells_[c];
    std::string wrong = problem(cell, kind, who);
    if (!wrong.empty())
      return cat("{}[{}]: {}", a.name, i + static_cast<int64_t>(((c << shift_) - begin) / a.element), wrong);
    if (kind == Access::read) {
      note(cell.read, who, false);
    } else {
      note(cell.write, who, kind == Access::atomic);
      cell.read.epoch = 0;
    }
  }
  return "";
}

void SharedMemory::copy_issued(const SharedArray& a, int64_t i, int count, bool pending, Who who) {
  const size_t begin = a.offset + static_cast<size_t>(i) * a.element;
  const size_t bytes = static_cast<size_t>(count) * a.element;
  for (size_t c = begin >> shift_; c << shift_ < begin + bytes; ++c) {
    cells_[c].pending = pending;
    cells_[c].write = {};
    note(cells_[c].write, who, false);
  }
}

}  // namespace csml::simt
