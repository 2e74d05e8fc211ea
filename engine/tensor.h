// Tensor: a cheap handle on a dense array in a device's memory. Knows no gradients (engine/var.h adds them).
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "engine/device.h"

namespace csml {

/// Copying shares the memory. A default-constructed Tensor is empty and converts to an absent view.
class Tensor {
 public:
  Tensor() = default;
  /// Uninitialised memory.
  Tensor(Device& device, Shape shape, DType dtype = DType::f32);
  /// Filled with `value` (f32).
  static Tensor full(Device& device, Shape shape, float value);
  /// Copied from the host; values.size() must be the shape's.
  template <class T>
  static Tensor from(Device& device, Shape shape, std::span<const T> values) {
    Tensor t(device, shape, dtype_of<T>::value);
    t.upload(values);
    return t;
  }
  template <class T>
  static Tensor from(Device& device, Shape shape, const std::vector<T>& values) {
    return from(device, shape, std::span<const T>(values));
  }

  explicit operator bool() const { return static_cast<bool>(storage_); }
  const Shape& shape() const { return shape_; }
  int64_t size() const { return storage_ ? shape_.size() : 0; }
  size_t bytes() const { return static_cast<size_t>(size()) * size_of(dtype_); }
  DType dtype() const { return dtype_; }
  Device& device() const;

  operator ConstView() const { return {data(), shape_, dtype_}; }
  operator View() const { return {data(), shape_, dtype_}; }

  /// Rows [first, first + count) of dimension 0, sharing memory.
  Tensor rows(int64_t first, int64_t count) const;
  /// The same elements under another shape.
  Tensor reshape(Shape shape) const;
  /// Elements [first, first + shape.size()) of the flat array under a shape: parameters in flat buffers.
  Tensor span(int64_t first, Shape shape) const;

  template <class T>
  void upload(std::span<const T> values) const {
    CHECK(dtype_ == dtype_of<T>::value && static_cast<int64_t>(values.size()) == size(),
          "upload of {} {} values into {} {}", values.size(), name_of(dtype_of<T>::value), name_of(dtype_),
          shape_.text());
    upload_bytes(values.data());
  }
  template <class T>
  void upload(const std::vector<T>& values) const {
    upload(std::span<const T>(values));
  }
  template <class T>
  std::vector<T> host() const {
    CHECK(dtype_ == dtype_of<T>::value, "tensor of {} read as {}", name_of(dtype_), name_of(dtype_of<T>::value));
    std::vector<T> values(static_cast<size_t>(size()));
    download_bytes(values.data());
    return values;
  }
  /// The only element of a one-element f32 tensor. Waits for the device.
  float item() const;

  void upload_bytes(const void* source) const;   // bytes() bytes
  void download_bytes(void* destination) const;  // bytes() bytes

 private:
  void* data() const { return storage_ ? static_cast<std::byte*>(storage_->data()) + offset_ : nullptr; }

  std::shared_ptr<Storage> storage_;
  size_t offset_ = 0;  // bytes
  Shape shape_{0};
  DType dtype_ = DType::f32;
};

inline Backend& backend(const Tensor& t) { return t.device().backend(); }
/// An uninitialised tensor of the same device, shape and type.
inline Tensor like(const Tensor& t) { return Tensor(t.device(), t.shape(), t.dtype()); }

}  // namespace csml
