// The host's side of kernels/cuda/launch.cuh: the names of kernels/cuda/device.cuh over the executor. Included by
// launch.cuh alone, where CSML_SIMT names this file.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "kernels/cuda/context.h"
#include "kernels/cuda/values.h"
#include "tests/simt/executor.h"

#define KERNEL
#define KERNEL_BOUNDS(threads, blocks)
#define DEVICE inline
#define SHARED(type, name, count)                                                              \
  const ::csml::cuda::Shared<type> name = ::csml::cuda::static_shared<type>(#name, count, [] { \
    static char key;                                                                           \
    return &key;                                                                               \
  }())

namespace csml::cuda {

using simt::Access;
using simt::Executor;
using simt::Where;

// ---- where am I -----------------------------------------------------------------------------------------------------

inline int thread() { return Executor::get().thread(); }
inline int lane() { return thread() % kWarp; }
inline int warp() { return thread() / kWarp; }
inline int block_threads() { return Executor::get().launch().threads; }
inline Index block() { return Executor::get().block(); }
inline Index grid() {
  const Grid& g = Executor::get().launch().grid;
  return {static_cast<int>(g.x), static_cast<int>(g.y), static_cast<int>(g.z)};
}

// ---- barriers and warps ---------------------------------------------------------------------------------------------

inline void sync_block(Where where = Where::current()) { Executor::get().sync_block(where); }
inline void sync_warp(Where where = Where::current()) { Executor::get().sync_warp(where); }

/// combine(in[32], out[32]) on the operands of all lanes.
template <class Out, class In, class F>
Out warp_operation(const char* what, Where where, const In& in, F) {
  Out out{};
  Executor::get().warp_operation(what, where, &in, &out, [](const void* const* ins, void* const* outs) {
    F{}([&](int i) -> const In& { return *static_cast<const In*>(ins[i]); },
        [&](int i) -> Out& { return *static_cast<Out*>(outs[i]); });
  });
  return out;
}

namespace detail {
template <class T>
struct Moved {
  T value;
  int from;  // lane
};
struct Take {
  template <class In, class Out>
  void operator()(In in, Out out) const {
    for (int i = 0; i < kWarp; ++i) out(i) = in(in(i).from % kWarp).value;
  }
};
struct Votes {
  template <class In, class Out>
  void operator()(In in, Out out) const {
    uint32_t votes = 0;
    for (int i = 0; i < kWarp; ++i) votes |= static_cast<uint32_t>(in(i)) << i;
    for (int i = 0; i < kWarp; ++i) out(i) = votes;
  }
};
template <class T>
T move_lanes(const char* what, Where where, T value, int from) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  return warp_operation<T>(what, where, Moved<T>{value, from}, Take{});
}
}  // namespace detail

template <class T>
T shuffle(T value, int from, Where where = Where::current()) {
  return detail::move_lanes("shuffle", where, value, from);
}
template <class T>
T shuffle_xor(T value, int mask, Where where = Where::current()) {
  return detail::move_lanes("shuffle_xor", where, value, lane() ^ mask);
}
template <class T>
T shuffle_up(T value, int distance, Where where = Where::current()) {
  return detail::move_lanes("shuffle_up", where, value, lane() >= distance ? lane() - distance : lane());
}
template <class T>
T shuffle_down(T value, int distance, Where where = Where::current()) {
  return detail::move_lanes("shuffle_down", where, value, lane() + distance < kWarp ? lane() + distance : lane());
}
inline uint32_t warp_ballot(bool yes, Where where = Where::current()) {
  return warp_operation<uint32_t>("warp_ballot", where, yes, detail::Votes{});
}
inline bool warp_any(bool yes, Where where = Where::current()) {
  return warp_operation<uint32_t>("warp_any", where, yes, detail::Votes{}) != 0;
}
inline bool warp_all(bool yes, Where where = Where::current()) {
  return warp_operation<uint32_t>("warp_all", where, yes, detail::Votes{}) == 0xFFFFFFFFu;
}

// ---- shared memory --------------------------------------------------------------------------------------------------

/// s[i]: a read where it is converted, a write where it is assigned. Not to be kept: `T x = s[i]`.
template <class T>
class SharedElement {
 public:
  SharedElement(const simt::SharedArray& array, int64_t i) : array_(array), i_(i) {}
  SharedElement(const SharedElement&) = delete;

  operator T() const&& { return read(); }
  void operator=(T value) const&& { write(value); }
  void operator=(SharedElement&& other) const&& { write(other.read()); }
  void operator+=(T value) const&& { write(static_cast<T>(read() + value)); }
  void operator*=(T value) const&& { write(static_cast<T>(read() * value)); }

 private:
  T read() const {
    T value;
    std::memcpy(&value, Executor::get().access(array_, i_, 1, Access::read), sizeof(T));
    return value;
  }
  void write(T value) const { std::memcpy(Executor::get().access(array_, i_, 1, Access::write), &value, sizeof(T)); }

  const simt::SharedArray& array_;
  int64_t i_;
};

template <class T>
struct Shared {
  simt::SharedArray array;

  SharedElement<T> operator[](int i) const { return {array, i}; }
  Shared slice(int begin, int count) const {
    if (begin < 0 || count < 0 || begin + count > array.count)
      Executor::get().fail(cat("slice of elements {} to {} of shared array {}, which has {}", begin, begin + count - 1,
                               array.name, array.count));
    return {{array.name, array.offset + static_cast<uint32_t>(begin) * array.element, count, array.element}};
  }
};

template <class T>
Shared<T> static_shared(const char* name, int count, const void* key) {
  static_assert(std::is_trivially_copyable_v<T>);
  return {Executor::get().shared().static_array(key, name, count, sizeof(T), 16)};
}
template <class T>
Shared<T> dynamic_shared(const char* name, int byte_offset, int count) {
  static_assert(std::is_trivially_copyable_v<T>);
  return {Executor::get().shared().dynamic_array(name, byte_offset, count, sizeof(T), alignof(T))};
}

// ---- vector loads and stores ----------------------------------------------------------------------------------------

namespace detail {
template <class P>
void check_aligned(const char* what, const void* at) {
  if (reinterpret_cast<uintptr_t>(at) % alignof(P))
    Executor::get().fail(cat("{} of {} bytes at an address that is {} bytes off", what, sizeof(P),
                             reinterpret_cast<uintptr_t>(at) % alignof(P)));
}
template <class P, class T>
std::byte* shared_pack(const char* what, const Shared<T>& s, int i, int n, Access kind) {
  if ((s.array.offset + static_cast<uint64_t>(i) * sizeof(T)) % alignof(P))
    Executor::get().fail(
        cat("{} of {} bytes at {}[{}], which is not aligned to them", what, sizeof(P), s.array.name, i));
  return Executor::get().access(s.array, i, n, kind);
}
}  // namespace detail

template <int N, class T>
Pack<T, N> load_pack(const T* from) {
  detail::check_aligned<Pack<T, N>>("load_pack", from);
  Pack<T, N> pack;
  std::memcpy(&pack, from, sizeof(pack));
  return pack;
}
template <class T, int N>
void store_pack(T* to, const Pack<T, N>& pack) {
  detail::check_aligned<Pack<T, N>>("store_pack", to);
  std::memcpy(to, &pack, sizeof(pack));
}
template <int N, class T>
Pack<T, N> load_pack(const Shared<T>& from, int i) {
  Pack<T, N> pack;
  std::memcpy(&pack, detail::shared_pack<Pack<T, N>>("load_pack", from, i, N, Access::read), sizeof(pack));
  return pack;
}
template <class T, int N>
void store_pack(const Shared<T>& to, int i, const Pack<T, N>& pack) {
  std::memcpy(detail::shared_pack<Pack<T, N>>("store_pack", to, i, N, Access::write), &pack, sizeof(pack));
}

// ---- atomics: nothing runs beside the thread between two barriers, so plain updates do ------------------------------

namespace detail {
template <class T, class F>
T update(T* at, F f) {
  const T old = *at;
  *at = f(old);
  return old;
}
template <class T, class F>
T update(const Shared<T>& s, int i, F f) {
  std::byte* at = Executor::get().access(s.array, i, 1, Access::atomic);
  T old;
  std::memcpy(&old, at, sizeof(T));
  const T next = f(old);
  std::memcpy(at, &next, sizeof(T));
  return old;
}
}  // namespace detail

template <class T>
T atomic_add(T* at, T value) {
  return detail::update(at, [=](T old) { return static_cast<T>(old + value); });
}
template <class T>
T atomic_max(T* at, T value) {
  return detail::update(at, [=](T old) { return std::max(old, value); });
}
template <class T>
T atomic_cas(T* at, T expected, T desired) {
  return detail::update(at, [=](T old) { return old == expected ? desired : old; });
}
template <class T>
T atomic_add(const Shared<T>& s, int i, T value) {
  return detail::update(s, i, [=](T old) { return static_cast<T>(old + value); });
}
template <class T>
T atomic_max(const Shared<T>& s, int i, T value) {
  return detail::update(s, i, [=](T old) { return std::max(old, value); });
}
template <class T>
T atomic_cas(const Shared<T>& s, int i, T expected, T desired) {
  return detail::update(s, i, [=](T old) { return old == expected ? desired : old; });
}

// ---- asynchronous copies, global to shared --------------------------------------------------------------------------

template <int kBytes, class T>
void copy_async(const Shared<T>& to, int i, const T* from, bool valid = true) {
  static_assert((kBytes == 4 || kBytes == 8 || kBytes == 16) && kBytes % sizeof(T) == 0);
  struct alignas(kBytes) Chunk {
    std::byte b[kBytes];
  };
  if (valid) detail::check_aligned<Chunk>("copy_async", from);
  if ((to.array.offset + static_cast<uint64_t>(i) * sizeof(T)) % kBytes)
    Executor::get().fail(
        cat("copy_async of {} bytes to {}[{}], which is not aligned to them", kBytes, to.array.name, i));
  Executor::get().copy_async(to.array, i, kBytes / static_cast<int>(sizeof(T)), valid ? from : nullptr);
}
inline void copy_commit() { Executor::get().copy_commit(); }
template <int kPending = 0>
void copy_wait() {
  Executor::get().copy_wait(kPending);
}

// ---- launch ---------------------------------------------------------------------------------------------------------

void check_launch(const Launch&);

template <class... Params>
void launch(Context& context, const Launch& how, void (*kernel)(Params...), std::type_identity_t<Params>... args) {
  check_launch(how);
  if (how.grid.x == 0 || how.grid.y == 0 || how.grid.z == 0) return;
  Executor::get().launches().note(reinterpret_cast<const void*>(kernel), how);
  Executor::get().run(how, [&] { kernel(args...); });
  context.count_launch();
}

}  // namespace csml::cuda

#include "tests/simt/fragments.h"
