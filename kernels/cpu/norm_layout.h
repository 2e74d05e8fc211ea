// How batch norm walks x on the CPU: rows cut into chunks, chunks into runs, and where written rows go.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <utility>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/stream.h"

namespace csml::cpu::norm {

// Bound by memory traffic, so: as few passes as possible, each in one sweep over rows. Rows are cut into chunks that do
// not depend on the number of threads; runs of kRun rows are summed in float, runs and chunks in order in double.
// Results are therefore the same for every thread count.
constexpr int kRun = 8;

/// How x [N, ..., C] is walked. A chunk is a run of rows of one group; where C is small, `fold` neighbouring rows are
/// read as one wide row, so that the inner loop stays long. Coefficients are stored expanded to `width` = fold * C.
struct Layout {
  int64_t groups, rows, channels;  // rows per group
  int64_t fold, width;
  int64_t chunk, chunks;  // rows per chunk, chunks per group

  int64_t tasks() const { return groups * chunks; }
  int64_t group_of(int64_t task) const { return task / chunks; }
  int64_t first_row(int64_t task) const { return group_of(task) * rows + task % chunks * chunk; }
  int64_t rows_of(int64_t task) const { return std::min(chunk, rows - task % chunks * chunk); }
};

inline Layout layout_of(const char* op, const Shape& shape, int groups) {
  constexpr int64_t kChunk = 32768, kMinRows = 32, kMinWidth = 64;
  CHECK(shape.rank() >= 2, "{}: x must be [N, ..., C], got {}", op, shape.text());
  const int64_t channels = shape[shape.rank() - 1];
  CHECK(groups >= 1 && shape[0] % groups == 0, "{}: {} rows cannot be cut into {} equal groups", op, shape[0], groups);
  Layout v{};
  v.groups = groups;
  v.channels = channels;
  v.rows = channels > 0 ? shape.size() / channels / groups : 0;
  v.fold = channels > 0 ? (kMinWidth + channels - 1) / channels : 1;
  v.width = v.fold * channels;
  v.chunk = std::max(kMinRows, channels > 0 ? kChunk / channels : kChunk);
  v.chunks = (v.rows + v.chunk - 1) / v.chunk;
  return v;
}

inline void check_like(const char* op, const char* name, const ConstView& v, const Shape& shape, bool required) {
  CHECK(v || !required, "{}: {} is missing", op, name);
  CHECK(!v || (v.shape == shape && v.dtype == DType::f32), "{}: {} is {} {}, must be f32 {}", op, name,
        name_of(v.dtype), v.shape.text(), shape.text());
}

/// Calls f(offset, n) for the wide rows of a chunk: n = width, less for the last one.
template <class F>
void for_wide_rows(const Layout& v, int64_t task, F&& f) {
  const int64_t begin = v.first_row(task) * v.channels, end = begin + v.rows_of(task) * v.channels;
  for (int64_t at = begin; at < end; at += v.width) f(at, std::min(v.width, end - at));
}

/// to[j] = from[j mod C] for j < width
inline void expand(const Layout& v, const float* from, float* to) {
  for (int64_t j = 0; j < v.width; j += v.channels) std::copy(from, from + v.channels, to + j);
}

/// Calls f(rows, offset, n) for the wide rows of a chunk, kRun of them at a time, then one by one; rows is a
/// compile-time constant, so that f's loop over them is unrolled and its loop over lanes vectorised.
template <class F>
void for_runs(const Layout& v, int64_t task, F&& f) {
  const int64_t begin = v.first_row(task) * v.channels, end = begin + v.rows_of(task) * v.channels;
  int64_t at = begin;
  for (; at + kRun * v.width <= end; at += kRun * v.width) f(std::integral_constant<int, kRun>{}, at, v.width);
  for (; at < end; at += v.width) f(std::integral_constant<int, 1>{}, at, std::min(v.width, end - at));
}

/// sum[c] = sum of the lanes of channel c
inline void contract(const Layout& v, double* sum) {
  for (int64_t j = v.channels; j < v.width; j += v.channels)
    for (int64_t c = 0; c < v.channels; ++c) sum[c] += sum[j + c];
}

/// Where a thread's rows of one output go: straight there, or through a few rows in the first cache that are then
/// streamed.
class RowWriter {
 public:
  RowWriter(const Layout& v, float* to, bool overwrite)
      : to_(to), width_(v.width), streams_(overwrite && may_stream(v)), row_(row(v)) {}
  ~RowWriter() {
    if (streams_) end_stream();
  }
  RowWriter(const RowWriter&) = delete;
  RowWriter& operator=(const RowWriter&) = delete;

  float* begin(int64_t at, int64_t n) { return streams(at, n) ? row_ : to_ + at; }
  void end(int64_t at, int64_t n) {
    if (streams(at, n)) stream_row(to_ + at, row_, n);
  }

 private:
  static bool may_stream(const Layout& v) {
    return v.width % (kStreamBytes / sizeof(float)) == 0 &&
           static_cast<size_t>(v.groups * v.rows * v.channels) * sizeof(float) >= kStreamMinBytes;
  }
  static float* row(const Layout& v) {
    thread_local Scratch scratch;
    return scratch.get<float>(kRun * v.width);
  }
  bool streams(int64_t at, int64_t n) const {
    return streams_ && n % width_ == 0 && reinterpret_cast<uintptr_t>(to_ + at) % kStreamBytes == 0;
  }

  float* to_;
  int64_t width_;
  bool streams_;
  float* row_;
};

/// Calls f(constant...) where each flag has become std::true_type or std::false_type.
template <class F>
void with_flags(F&& f) {
  f();
}
template <class F, class... Rest>
void with_flags(F&& f, bool flag, Rest... rest) {
  const auto go = [&](auto constant) { with_flags([&](auto... others) { f(constant, others...); }, rest...); };
  if (flag)
    go(std::true_type{});
  else
    go(std::false_type{});
}

}  // namespace csml::cpu::norm
