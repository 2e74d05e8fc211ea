#include "engine/tensor.h"

namespace csml {

Tensor::Tensor(Device& device, Shape shape, DType dtype)
    : storage_(device.allocate(static_cast<size_t>(shape.size()) * size_of(dtype))), shape_(shape), dtype_(dtype) {}

Tensor Tensor::full(Device& device, Shape shape, float value) {
  Tensor t(device, shape);
  device.backend().fill({.y = t, .value = value});
  return t;
}

Device& Tensor::device() const {
  CHECK(storage_, "an empty tensor has no device");
  return storage_->device();
}

Tensor Tensor::rows(int64_t first, int64_t count) const {
  CHECK(first >= 0 && count >= 0 && first <= shape_[0] - count, "{} rows from row {} on of shape {}", count, first,
        shape_.text());
  Tensor t = *this;
  t.offset_ += static_cast<size_t>(first * shape_.row_size()) * size_of(dtype_);
  t.shape_ = shape_.with_rows(count);
  return t;
}

Tensor Tensor::reshape(Shape shape) const {
  CHECK(shape.size() == size(), "cannot see shape {} as {}", shape_.text(), shape.text());
  Tensor t = *this;
  t.shape_ = shape;
  return t;
}

Tensor Tensor::span(int64_t first, Shape shape) const {
  CHECK(first >= 0 && first + shape.size() <= size(), "span [{}, {}) of {} elements", first, first + shape.size(),
        size());
  Tensor t = *this;
  t.offset_ += static_cast<size_t>(first) * size_of(dtype_);
  t.shape_ = shape;
  return t;
}

float Tensor::item() const {
  CHECK(size() == 1 && dtype_ == DType::f32, "item() of {} {}", name_of(dtype_), shape_.text());
  return host<float>()[0];
}

void Tensor::upload_bytes(const void* source) const {
  if (bytes()) device().backend().upload(data(), source, bytes());
}

void Tensor::download_bytes(void* destination) const {
  if (bytes()) device().backend().download(destination, data(), bytes());
}

}  // namespace csml
