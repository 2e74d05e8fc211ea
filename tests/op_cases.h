// One table of kernel calls, each with its inputs and its reference in double. Used by the kernel tests (any Backend,
// between red zones), the gradient tests (through tests/reference.h) and `csml bench` (no test framework in here).
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tests/test.h"

namespace csml::test {

/// Fills an array; `outliers` asks for a few values far larger than the rest where the op allows that.
using Fill = std::function<void(Array&, Random&, bool outliers)>;

enum class Role { input, output, in_out };

/// One array of a call, under its name in kernels/backend.h. Arrays not listed are absent.
struct Arg {
  std::string name;
  Shape shape{0};
  DType dtype = DType::f32;
  Role role = Role::input;
  Fill fill;  // inputs and in_out
  Tolerance tolerance;
};

/// A case's arrays in a backend's memory.
class Bound {
 public:
  void add(const std::string& name, View view) { views_[name] = view; }
  /// Absent where the case has no such array.
  View operator[](const std::string& name) const {
    const auto found = views_.find(name);
    return found == views_.end() ? View{} : found->second;
  }

 private:
  std::map<std::string, View> views_;
};

struct OpCase {
  std::string op{};      // the call of kernels/backend.h
  std::string detail{};  // what this case is about
  std::vector<Arg> args{};
  std::function<void(Backend&, const Bound&)> call{};
  /// From the inputs and the old values of in_out arrays: every output. Empty for timing-only cases.
  std::function<void(const Arrays& in, Arrays& out)> reference{};
  /// Makes inputs that follow from others (saved results of the forward call); may be empty.
  std::function<void(Arrays& in)> prepare{};
  double flops = 0;
  /// How often an array crosses memory at the least, where it is not once (in_out: twice): more where a sum over more
  /// than the caches hold comes before its use, less where a part of the array is used.
  std::map<std::string, double> crossings{};
  /// Pairs (output, input) which the contract allows to share memory.
  std::vector<std::pair<std::string, std::string>> in_place{};
  /// The result is promised to be the same for every number of threads.
  bool same_for_any_threads = false;

  std::string name() const { return op + " " + detail; }
  /// Bytes read and written if no array crosses memory more often than it must: the floor.
  double bytes() const;
  /// The values of all inputs and in_out arrays, rounded to their element types; the same on every machine.
  Arrays inputs(bool outliers) const;
};

/// The cases with a reference: small, with odd sizes and edge cases.
const std::vector<OpCase>& op_cases();

/// Cases for timing, in the shapes of ResNet-50 at 224x224, or with cifar of ResNet-18 at 32x32.
std::vector<OpCase> bench_cases(bool cifar, int64_t batch);

/// The case with its f32 activations, or only one of them, in another type; nothing where it has none.
std::optional<OpCase> in_type(const OpCase& c, DType type, const std::string& only = "");

/// Every call of kernels/backend.h that computes something.
const std::vector<std::string>& backend_calls();

// ---- the families of the table (tests/op_cases_*.cpp) ---------------------------------------------------------------

using OpCases = std::vector<OpCase>;
void add_elementwise_cases(OpCases&);
void add_conv_cases(OpCases&);
void add_norm_cases(OpCases&);
void add_sync_norm_cases(OpCases&);
void add_contrast_cases(OpCases&);
void add_commit_cases(OpCases&);
void add_augment_cases(OpCases&);
void add_view_cases(OpCases&);
void add_elementwise_bench_cases(OpCases&, bool cifar, int64_t batch);
void add_norm_bench_cases(OpCases&, bool cifar, int64_t batch);
void add_sync_norm_bench_cases(OpCases&, bool cifar, int64_t batch);
void add_contrast_bench_cases(OpCases&, bool cifar, int64_t batch);
void add_augment_bench_cases(OpCases&, bool cifar, int64_t batch);
void add_view_bench_cases(OpCases&, bool cifar, int64_t batch);
void add_commit_bench_cases(OpCases&, bool cifar, int64_t batch);

// ---- building blocks of a case --------------------------------------------------------------------------------------

Fill normal(double scale = 1, double offset = 0);
/// Uniform in [low, high), no outliers.
Fill uniform(double low, double high);
/// Normal values rounded to multiples of 1/16 and cut to [-4, 4]: sums of products are exact in f32, ties happen.
Fill sixteenths();
/// Uniform integers in [0, n).
Fill below(int64_t n);
/// Normal rows scaled to unit length.
Fill unit_rows();
Fill values(std::vector<double> v);
inline Fill value(double v) { return values({v}); }

Arg input(const std::string& name, Shape shape, Fill fill = normal(), DType dtype = DType::f32);
Arg output(const std::string& name, Shape shape, Tolerance tolerance = {}, DType dtype = DType::f32);
/// An array the call updates.
Arg in_out(const std::string& name, Shape shape, Fill fill = normal(), Tolerance tolerance = {},
           DType dtype = DType::f32);
/// An output under overwrite, an updated array under accumulate.
Arg gradient(const std::string& name, Shape shape, Write write, Tolerance tolerance = {});

/// out[name] = value, plus the old content where the array is in_out (accumulate).
void put(const Arrays& in, Arrays& out, const std::string& name, Array value);

/// No gradient ("dy", "dy2" of `in`) where y is so near 0 that a kernel which finds its sign again in f32 may find
/// another one.
void drop_gradient_at_kinks(Arrays& in, const Array& y);

inline const char* text_of(Write write) { return write == Write::accumulate ? " accumulate" : ""; }
inline constexpr Write kWrites[] = {Write::overwrite, Write::accumulate};

}  // namespace csml::test
