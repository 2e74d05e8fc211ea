// Golden: one file of reference values (tests/golden/README.md) and the comparison with it.
//   max|ours - X| / max|X|  <=  max(times * err/X, floor),  err/X = PyTorch's own fp32 error; times 4, floor 1e-6
// Include it after the project's headers: doctest's CHECK replaces theirs.
#pragma once

#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "engine/safetensors.h"
#include "engine/tensor.h"
#include "tests/test.h"

#include <doctest/doctest.h>

namespace csml::test {

inline std::vector<float> floats(const NamedArray& array) {
  REQUIRE(array.dtype == DType::f32);
  std::vector<float> values(array.data.size() / sizeof(float));
  std::memcpy(values.data(), array.data.data(), array.data.size());
  return values;
}

class Golden {
 public:
  /// `name` without folder and extension. Tests run in the repository's root.
  explicit Golden(const std::string& name, double times = 4, double floor = 1e-6)
      : name_(name),
        times_(times),
        floor_(floor),
        file_(SafetensorsFile::open(std::filesystem::path("tests/golden") / (name + ".safetensors"))) {}
  Golden(const Golden&) = delete;
  Golden& operator=(const Golden&) = delete;
  /// Tells how close it was: the largest share of the allowance, and the largest multiple of PyTorch's error where
  /// that is what was allowed.
  ~Golden() {
    if (seen_.empty()) return;
    MESSAGE(cat("golden {}: {} tensors, worst {:.2f} of the allowance ({}), worst {:.2f} x PyTorch's fp32 error ({})",
                name_, seen_.size(), worst_share_, worst_share_at_, worst_multiple_, worst_multiple_at_));
  }

  bool contains(const std::string& name) const { return file_.contains(name); }
  NamedArray array(const std::string& name) const { return file_.read(name); }
  const Metadata& metadata() const { return file_.metadata(); }
  template <class T = float>
  std::vector<T> values(const std::string& name) const {
    const ArrayInfo& info = file_.info(name);
    REQUIRE(info.dtype == dtype_of<T>::value);
    std::vector<T> values(info.bytes / sizeof(T));
    file_.read(name, values.data(), info.bytes);
    return values;
  }
  float scalar(const std::string& name) const { return values(name).at(0); }
  Shape shape(const std::string& name) const { return file_.info(name).shape; }
  Tensor tensor(Device& device, const std::string& name) const {
    const NamedArray a = array(name);
    Tensor t(device, a.shape, a.dtype);
    t.upload_bytes(a.data.data());
    return t;
  }
  /// All arrays whose names start with `prefix`, under their whole names.
  std::vector<NamedArray> arrays(const std::string& prefix = "") const {
    std::vector<NamedArray> list;
    for (const auto& [name, info] : file_.arrays())
      if (name.starts_with(prefix)) list.push_back(file_.read(name));
    return list;
  }

  void expect(const std::string& name, const std::vector<float>& ours) {
    const std::vector<float> golden = values(name);
    REQUIRE_MESSAGE(ours.size() == golden.size(), cat("{} {}: {} values", name_, name, ours.size()));
    double largest = 0, difference = 0;
    size_t at = 0;
    for (size_t i = 0; i < golden.size(); ++i) {
      const double d = std::abs(double{ours[i]} - double{golden[i]});
      if (!(d <= difference)) difference = d, at = i;  // a NaN stays
      largest = std::max(largest, std::abs(double{golden[i]}));
    }
    const std::string error_name = "err/" + name;
    const double theirs = file_.contains(error_name) ? double{scalar(error_name)} : 0;
    const double allowed = std::max(times_ * theirs, floor_);
    // Only zeros are expected where the exact value is zero by construction.
    const double error = largest > 0 ? difference / largest : difference;
    seen_.insert(name);
    if (!(error / allowed <= worst_share_)) worst_share_ = error / allowed, worst_share_at_ = name;
    if (times_ * theirs >= floor_ && !(error / theirs <= worst_multiple_))
      worst_multiple_ = error / theirs, worst_multiple_at_ = name;
    CHECK_MESSAGE(
        error <= allowed,
        cat("{} {}: element {} is {:.9g}, expected {:.9g}; error {:.3g}, allowed {:.3g}, PyTorch {:.3g}", name_, name,
            at, ours.empty() ? 0 : ours[at], golden.empty() ? 0 : golden[at], error, allowed, theirs));
  }
  void expect(const std::string& name, const Tensor& ours) { expect(name, ours.host<float>()); }
  /// Each array against prefix + its name.
  void expect_all(const std::string& prefix, const std::vector<NamedArray>& ours) {
    for (const NamedArray& a : ours) {
      CHECK(a.shape == shape(prefix + a.name));
      expect(prefix + a.name, floats(a));
    }
  }
  /// Names that start with `prefix`, have an error bound and were never compared.
  std::vector<std::string> unseen(const std::string& prefix = "") const {
    std::vector<std::string> names;
    for (const auto& [name, info] : file_.arrays())
      if (name.starts_with("err/" + prefix) && !seen_.contains(name.substr(4))) names.push_back(name.substr(4));
    return names;
  }

 private:
  std::string name_;
  double times_, floor_;
  SafetensorsFile file_;
  std::set<std::string> seen_;
  double worst_share_ = 0, worst_multiple_ = 0;
  std::string worst_share_at_ = "-", worst_multiple_at_ = "-";
};

/// Value i in [0, 1) of the stream that a name gives (tests/golden/README.md, "Tensors from a hash").
inline double hash_uniform(uint64_t seed, uint64_t i) {
  uint64_t z = seed + i + 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  z ^= z >> 31;
  return static_cast<double>(z >> 40) * 0x1p-24;
}

}  // namespace csml::test
