// What every numeric test uses: arrays in double on the host, seeded inputs, tolerances, red-zoned device buffers.
#pragma once

#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/half.h"
#include "kernels/random.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace csml::test {

/// A dense array on the host. Values are doubles whatever the element type on the device is.
struct Array {
  Shape shape{0};
  DType dtype = DType::f32;
  std::vector<double> v;

  Array() = default;
  explicit Array(Shape s, DType type = DType::f32) : shape(s), dtype(type), v(static_cast<size_t>(s.size()), 0.0) {}
  int64_t size() const { return static_cast<int64_t>(v.size()); }
  double& operator[](int64_t i) { return v[static_cast<size_t>(i)]; }
  double operator[](int64_t i) const { return v[static_cast<size_t>(i)]; }
};
using Arrays = std::map<std::string, Array>;

/// f(T{}) with the C++ type of a DType.
template <class F>
auto with_type(DType type, F&& f) {
  switch (type) {
    case DType::f32:
      return f(float{});
    case DType::bf16:
      return f(bf16{});
    case DType::f16:
      return f(f16{});
    case DType::f64:
      return f(double{});
    case DType::u8:
      return f(uint8_t{});
    case DType::i32:
      return f(int32_t{});
    case DType::i64:
      return f(int64_t{});
  }
  throw Error("no such element type");
}

inline std::vector<std::byte> to_bytes(const Array& a) {
  std::vector<std::byte> bytes(a.v.size() * size_of(a.dtype));
  with_type(a.dtype, [&]<class T>(T) {
    for (size_t i = 0; i < a.v.size(); ++i) {
      const T value(static_cast<std::conditional_t<sizeof(T) == 2, float, T>>(a.v[i]));
      std::memcpy(bytes.data() + i * sizeof(T), &value, sizeof(T));
    }
  });
  return bytes;
}

inline Array from_bytes(Shape shape, DType dtype, const std::vector<std::byte>& bytes) {
  Array a(shape, dtype);
  with_type(dtype, [&]<class T>(T value) {
    for (size_t i = 0; i < a.v.size(); ++i) {
      std::memcpy(&value, bytes.data() + i * sizeof(T), sizeof(T));
      a.v[i] = static_cast<double>(value);
    }
  });
  return a;
}

/// What the device will see: every value rounded to the element type.
inline void round_to_dtype(Array& a) { a = from_bytes(a.shape, a.dtype, to_bytes(a)); }

/// FNV-1a of a name: the seed of everything drawn for it.
inline uint64_t seed_of(const std::string& name) {
  uint64_t hash = 0xCBF29CE484222325u;
  for (char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
  return hash;
}

inline Random random_of(const std::string& name) { return Random(seed_of(name), Purpose::test); }

/// Standard normal values times `scale` plus `offset`; with outliers, one value in 64 (at least one) is 20 times as
/// large: sums that lose small terms next to large ones show.
inline void fill_normal(Array& a, Random& random, bool outliers, double scale = 1, double offset = 0) {
  for (double& x : a.v) x = scale * random.normal();
  if (outliers && a.size() > 0)
    for (int64_t i = 0; i < a.size() / 64 + 1; ++i) a[random.below(static_cast<uint32_t>(a.size()))] *= 20;
  for (double& x : a.v) x += offset;
}

/// Largest errors that an f32 result may have; integers must be equal. A case with wider bounds says why.
///   nmse = sum (got - want)^2 / sum want^2;   worst = max |got - want| / max |want|
struct Tolerance {
  double nmse = 1e-10, worst = 5e-5;
  const char* reason = "";
};
inline constexpr Tolerance kExact{0, 0, "moves values, computes nothing"};

/// The bounds of a result that is computed like an f32 one and then rounded to its element type once: errors add, with
/// u the unit roundoff, per element at most u |want|.
inline Tolerance rounded_to(DType type, Tolerance tolerance) {
  if (tolerance.worst == 0 || type == DType::f32 || type == DType::f64) return tolerance;
  if (type != DType::bf16 && type != DType::f16) return kExact;
  const double u = std::ldexp(1.0, type == DType::bf16 ? -8 : -11), nmse = u + std::sqrt(tolerance.nmse);
  return {nmse * nmse, u + tolerance.worst, tolerance.reason};
}

/// Empty when got agrees with want; else one line that names `what` and its worst element.
inline std::string difference(const std::string& what, const Array& got, const Array& want, Tolerance tolerance = {}) {
  if (got.size() != want.size()) return cat("{}: {} values, expected {}", what, got.v.size(), want.v.size());
  tolerance = rounded_to(want.dtype, tolerance);
  double error2 = 0, want2 = 0, worst = -1, largest = 0;
  int64_t at = 0;
  for (int64_t i = 0; i < want.size(); ++i) {
    if (!std::isfinite(want[i]) || !std::isfinite(got[i])) {
      if (got[i] == want[i] || (std::isnan(got[i]) && std::isnan(want[i]))) continue;
      return cat("{}: element {} of {} is {}, expected {}", what, i, want.shape.text(), got[i], want[i]);
    }
    const double d = std::abs(got[i] - want[i]);
    if (d > worst) worst = d, at = i;
    error2 += d * d;
    want2 += want[i] * want[i];
    largest = std::max(largest, std::abs(want[i]));
  }
  if (worst <= 0) return "";
  constexpr double kTiny = 1e-30;  // where everything expected is zero, errors are absolute
  const double nmse = error2 / std::max(want2, kTiny), relative = worst / std::max(largest, kTiny);
  if (nmse <= tolerance.nmse && relative <= tolerance.worst) return "";
  return cat("{}: worst element {} of {} is {:.9g}, expected {:.9g}; NMSE {:.2e} (<= {:.0e}), worst {:.2e} (<= {:.0e})",
             what, at, want.shape.text(), got[at], want[at], nmse, tolerance.nmse, relative, tolerance.worst);
}

/// An array in a backend's memory between two guards. Guards and, until written, the array hold a NaN with a payload:
/// a write outside is found by check(), a read outside poisons the result, and so does an element never written.
class RedZone {
 public:
  /// shift: bytes by which the array is moved off the backend's alignment (slices and flat buffers do that).
  RedZone(Backend& backend, size_t bytes, size_t shift = 0)
      : backend_(backend), begin_(kGuard + shift), bytes_(bytes), image_(begin_ + bytes + kGuard) {
    for (size_t i = 0; i < image_.size(); ++i) image_[i] = std::byte(kNan >> (8 * ((i - begin_) % 4)));
    memory_ = static_cast<std::byte*>(backend_.allocate(image_.size()));
    backend_.upload(memory_, image_.data(), image_.size());
    forbid();
  }
  ~RedZone() {
    allow();
    backend_.release(memory_);
  }
  RedZone(const RedZone&) = delete;
  RedZone& operator=(const RedZone&) = delete;

  void* data() const { return memory_ + begin_; }
  void write(const std::vector<std::byte>& bytes) { backend_.upload(data(), bytes.data(), bytes.size()); }
  std::vector<std::byte> read() const {
    std::vector<std::byte> bytes(bytes_);
    backend_.download(bytes.data(), data(), bytes_);
    return bytes;
  }
  /// Empty, or which side of the array was written to.
  std::string check() const {
    std::vector<std::byte> now(image_.size());
    allow();
    backend_.download(now.data(), memory_, now.size());
    forbid();
    const size_t end = begin_ + bytes_;
    for (size_t i = begin_; i-- > 0;)
      if (now[i] != image_[i]) return cat("written {} bytes before its start", begin_ - i);
    for (size_t i = end; i < now.size(); ++i)
      if (now[i] != image_[i]) return cat("written {} bytes after its end", i - end + 1);
    return "";
  }

 private:
  static constexpr size_t kGuard = 256;
  static constexpr uint32_t kNan = 0x7FC0DEAD;

  /// With AddressSanitizer and memory of the host, reading the guards is an error too.
#ifdef __SANITIZE_ADDRESS__
  void forbid() const {
    if (backend_.stream()) return;
    __asan_poison_memory_region(memory_, begin_);
    __asan_poison_memory_region(memory_ + begin_ + bytes_, image_.size() - begin_ - bytes_);
  }
  void allow() const { __asan_unpoison_memory_region(memory_, image_.size()); }
#else
  void forbid() const {}
  void allow() const {}
#endif

  Backend& backend_;
  size_t begin_, bytes_;
  std::vector<std::byte> image_;
  std::byte* memory_ = nullptr;
};

}  // namespace csml::test
