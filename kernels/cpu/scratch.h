// Scratch: working memory that a kernel keeps between calls.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace csml::cpu {

/// One 64-byte aligned buffer that grows and never shrinks: no allocation once the largest shape has been seen.
/// Kernels hold it as a `thread_local` of the calling thread, so calls from several threads never share one.
class Scratch {
 public:
  /// Room for `count` elements; the content is undefined and lives until the next get().
  template <class T>
  T* get(int64_t count) {
    return static_cast<T*>(reserve(static_cast<size_t>(count) * sizeof(T)));
  }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(void* data) const { ::operator delete(data, kAlignment); }
  };

  void* reserve(size_t bytes) {
    if (bytes > capacity_) {
      data_.reset();
      capacity_ = 0;
      data_.reset(::operator new(bytes, kAlignment));
      capacity_ = bytes;
    }
    return data_.get();
  }

  std::unique_ptr<void, Free> data_;
  size_t capacity_ = 0;
};

}  // namespace csml::cpu
