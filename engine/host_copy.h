// HostCopy: a tensor's values as they are at one moment of the device's work, which the host reads when it likes.
#pragma once

#include <cstring>
#include <memory>
#include <vector>

#include "engine/tensor.h"

namespace csml {

class HostCopy {
 public:
  /// Queues the copy behind everything so far; the host does not wait. Drops one that was not read.
  void start(const Tensor& t) {
    const size_t bytes = t.bytes();
    CHECK(bytes > 0, "a copy of nothing");
    if (!copy_ || bytes != bytes_) copy_ = backend(t).readback(bytes);
    bytes_ = bytes;
    dtype_ = t.dtype();
    copy_->start(ConstView(t).data);
  }
  /// The values as start() found them. Waits for them and for nothing that was queued after them.
  template <class T>
  std::vector<T> values() const {
    CHECK(copy_ && dtype_ == dtype_of<T>::value, "a copy of {} read as {}", name_of(dtype_),
          name_of(dtype_of<T>::value));
    std::vector<T> out(bytes_ / sizeof(T));
    std::memcpy(out.data(), copy_->wait(), bytes_);
    return out;
  }

 private:
  std::unique_ptr<Readback> copy_;
  size_t bytes_ = 0;
  DType dtype_ = DType::f32;
};

}  // namespace csml
