// DType, Shape, View and ConstView, Write: what a kernel sees of memory. Dense, row-major, at most four dimensions.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "kernels/check.h"

namespace csml {

enum class DType : uint8_t { f32, bf16, f16, f64, u8, i32, i64 };

constexpr size_t size_of(DType type) {
  switch (type) {
    case DType::u8:
      return 1;
    case DType::bf16:
    case DType::f16:
      return 2;
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::f64:
    case DType::i64:
      return 8;
  }
  return 0;
}

constexpr const char* name_of(DType type) {
  switch (type) {
    case DType::f32:
      return "f32";
    case DType::bf16:
      return "bf16";
    case DType::f16:
      return "f16";
    case DType::f64:
      return "f64";
    case DType::u8:
      return "u8";
    case DType::i32:
      return "i32";
    case DType::i64:
      return "i64";
  }
  return "?";
}

/// DType of a C++ element type, for checked typed access.
template <class T>
struct dtype_of;
template <>
struct dtype_of<float> {
  static constexpr DType value = DType::f32;
};
template <>
struct dtype_of<double> {
  static constexpr DType value = DType::f64;
};
template <>
struct dtype_of<uint8_t> {
  static constexpr DType value = DType::u8;
};
template <>
struct dtype_of<int32_t> {
  static constexpr DType value = DType::i32;
};
template <>
struct dtype_of<int64_t> {
  static constexpr DType value = DType::i64;
};

/// Extents of a dense array, last dimension fastest. Images are [N, H, W, C], filters [K, R, S, C], features [N, D].
/// Rank 0 is a scalar (one element).
class Shape {
 public:
  static constexpr int kMaxRank = 4;

  Shape() = default;
  Shape(std::initializer_list<int64_t> extents) {
    CHECK(extents.size() <= kMaxRank, "a shape has at most {} dimensions, got {}", kMaxRank, extents.size());
    for (int64_t extent : extents) {
      CHECK(extent >= 0, "a shape's extent must not be negative, got {}", extent);
      dim_[rank_++] = extent;
    }
  }

  int rank() const { return rank_; }
  int64_t operator[](int i) const {
    DCHECK(i >= 0 && i < rank_, "dimension {} of a rank-{} shape", i, rank_);
    return dim_[i];
  }
  /// Number of elements.
  int64_t size() const {
    int64_t n = 1;
    for (int i = 0; i < rank_; ++i) n *= dim_[i];
    return n;
  }
  /// Elements of one row: size of all dimensions but the first.
  int64_t row_size() const {
    int64_t n = 1;
    for (int i = 1; i < rank_; ++i) n *= dim_[i];
    return n;
  }
  /// The same shape with another first extent.
  Shape with_rows(int64_t rows) const {
    CHECK(rank_ > 0, "a scalar has no rows");
    Shape s = *this;
    s.dim_[0] = rows;
    return s;
  }
  /// "[2, 3, 4]"
  std::string text() const {
    std::string s = "[";
    for (int i = 0; i < rank_; ++i) s += (i ? ", " : "") + std::to_string(dim_[i]);
    return s + "]";
  }
  friend bool operator==(const Shape& a, const Shape& b) {
    if (a.rank_ != b.rank_) return false;
    for (int i = 0; i < a.rank_; ++i)
      if (a.dim_[i] != b.dim_[i]) return false;
    return true;
  }

 private:
  std::array<int64_t, kMaxRank> dim_{};
  int rank_ = 0;
};

/// Read-only dense array in a device's memory. Default-constructed = absent ("not given").
struct ConstView {
  const void* data = nullptr;
  Shape shape{0};
  DType dtype = DType::f32;

  explicit operator bool() const { return data != nullptr; }
  int64_t size() const { return data ? shape.size() : 0; }
  size_t bytes() const { return static_cast<size_t>(size()) * size_of(dtype); }
  /// Typed pointer; throws when T is not the element type.
  template <class T>
  const T* as() const {
    CHECK(dtype == dtype_of<T>::value, "view of {} read as {}", name_of(dtype), name_of(dtype_of<T>::value));
    return static_cast<const T*>(data);
  }
};

/// Writable dense array in a device's memory. Default-constructed = absent ("not wanted").
struct View {
  void* data = nullptr;
  Shape shape{0};
  DType dtype = DType::f32;

  explicit operator bool() const { return data != nullptr; }
  int64_t size() const { return data ? shape.size() : 0; }
  size_t bytes() const { return static_cast<size_t>(size()) * size_of(dtype); }
  operator ConstView() const { return {data, shape, dtype}; }
  template <class T>
  T* as() const {
    CHECK(dtype == dtype_of<T>::value, "view of {} written as {}", name_of(dtype), name_of(dtype_of<T>::value));
    return static_cast<T*>(data);
  }
};

/// What a kernel does with an output's old content.
enum class Write : uint8_t { overwrite, accumulate };

}  // namespace csml
