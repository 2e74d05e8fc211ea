// The GPU's side of launch.cuh: thin names over CUDA's built-ins, compiled by nvcc. tests/simt/device.h has the same
// names for the executor; a name added here is added there. Capability 8.0 and newer.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "kernels/cuda/context.h"
#include "kernels/cuda/values.h"

#define KERNEL __global__
#define KERNEL_BOUNDS(threads, blocks) __global__ __launch_bounds__(threads, blocks)
#define DEVICE __device__ __forceinline__
#define SHARED(type, name, count)                       \
  __shared__ __align__(16) type name##_storage_[count]; \
  const ::csml::cuda::Shared<type> name { name##_storage_ }

namespace csml::cuda {

// ---- where am I -----------------------------------------------------------------------------------------------------

DEVICE int thread() { return static_cast<int>(threadIdx.x); }
DEVICE int lane() { return static_cast<int>(threadIdx.x % kWarp); }
DEVICE int warp() { return static_cast<int>(threadIdx.x / kWarp); }
DEVICE int block_threads() { return static_cast<int>(blockDim.x); }
DEVICE Index block() {
  return {static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z)};
}
DEVICE Index grid() { return {static_cast<int>(gridDim.x), static_cast<int>(gridDim.y), static_cast<int>(gridDim.z)}; }

// ---- barriers and warps ---------------------------------------------------------------------------------------------

DEVICE void sync_block() { __syncthreads(); }
DEVICE void sync_warp() { __syncwarp(); }
template <class T>
DEVICE T shuffle(T value, int from) {
  return __shfl_sync(0xFFFFFFFFu, value, from);
}
template <class T>
DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xFFFFFFFFu, value, mask);
}
template <class T>
DEVICE T shuffle_up(T value, int distance) {
  return __shfl_up_sync(0xFFFFFFFFu, value, distance);
}
template <class T>
DEVICE T shuffle_down(T value, int distance) {
  return __shfl_down_sync(0xFFFFFFFFu, value, distance);
}
DEVICE uint32_t warp_ballot(bool yes) { return __ballot_sync(0xFFFFFFFFu, yes); }
DEVICE bool warp_any(bool yes) { return __any_sync(0xFFFFFFFFu, yes); }
DEVICE bool warp_all(bool yes) { return __all_sync(0xFFFFFFFFu, yes); }

// ---- shared memory --------------------------------------------------------------------------------------------------

template <class T>
struct Shared {
  T* data;

  DEVICE T& operator[](int i) const { return data[i]; }
  DEVICE Shared slice(int begin, int) const { return {data + begin}; }
};

template <class T>
DEVICE Shared<T> dynamic_shared(const char*, int byte_offset, int) {
  extern __shared__ __align__(128) unsigned char csml_dynamic_shared[];
  return {reinterpret_cast<T*>(csml_dynamic_shared + byte_offset)};
}

// ---- vector loads and stores ----------------------------------------------------------------------------------------

template <int N, class T>
DEVICE Pack<T, N> load_pack(const T* from) {
  return *reinterpret_cast<const Pack<T, N>*>(from);
}
template <class T, int N>
DEVICE void store_pack(T* to, const Pack<T, N>& pack) {
  *reinterpret_cast<Pack<T, N>*>(to) = pack;
}
template <int N, class T>
DEVICE Pack<T, N> load_pack(Shared<T> from, int i) {
  return *reinterpret_cast<const Pack<T, N>*>(from.data + i);
}
template <class T, int N>
DEVICE void store_pack(Shared<T> to, int i, const Pack<T, N>& pack) {
  *reinterpret_cast<Pack<T, N>*>(to.data + i) = pack;
}

// ---- atomics --------------------------------------------------------------------------------------------------------

template <class T>
DEVICE T atomic_add(T* at, T value) {
  return atomicAdd(at, value);
}
template <class T>
DEVICE T atomic_max(T* at, T value) {
  return atomicMax(at, value);
}
template <class T>
DEVICE T atomic_cas(T* at, T expected, T desired) {
  return atomicCAS(at, expected, desired);
}
template <class T>
DEVICE T atomic_add(Shared<T> s, int i, T value) {
  return atomicAdd(s.data + i, value);
}
template <class T>
DEVICE T atomic_max(Shared<T> s, int i, T value) {
  return atomicMax(s.data + i, value);
}
template <class T>
DEVICE T atomic_cas(Shared<T> s, int i, T expected, T desired) {
  return atomicCAS(s.data + i, expected, desired);
}

// ---- asynchronous copies, global to shared --------------------------------------------------------------------------

template <int kBytes, class T>
DEVICE void copy_async(Shared<T> to, int i, const T* from, bool valid = true) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(to.data + i));
  const int bytes = valid ? kBytes : 0;
  if constexpr (kBytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(from), "n"(kBytes), "r"(bytes)
                 : "memory");
}
DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending = 0>
DEVICE void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// ---- matrix fragments -----------------------------------------------------------------------------------------------

template <int kCount, bool kTranspose = false, class T>
DEVICE void load_matrices(uint32_t (&r)[kCount], Shared<T> from, int i) {
  static_assert((kCount == 1 || kCount == 2 || kCount == 4) && sizeof(T) == 2);
  const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(from.data + i));
  if constexpr (kCount == 4 && kTranspose)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
  else if constexpr (kCount == 4)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
  else if constexpr (kCount == 2 && kTranspose)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(at)
                 : "memory");
  else if constexpr (kCount == 2)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(at)
                 : "memory");
  else if constexpr (kTranspose)
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(at) : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(at) : "memory");
}

#define CSML_MMA(type, shape, types)                                                              \
  DEVICE void mma(FragmentD& d, const FragmentA<type>& a, const FragmentB<type>& b) {             \
    asm volatile("mma.sync.aligned." shape ".row.col." types                                      \
                 " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"               \
                 : "+f"(d.v[0]), "+f"(d.v[1]), "+f"(d.v[2]), "+f"(d.v[3])                         \
                 : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b.r[0]), "r"(b.r[1])); \
  }
CSML_MMA(bf16, "m16n8k16", "f32.bf16.bf16.f32")
CSML_MMA(f16, "m16n8k16", "f32.f16.f16.f32")
CSML_MMA(tf32, "m16n8k8", "f32.tf32.tf32.f32")
#undef CSML_MMA

DEVICE uint32_t to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

// ---- launch ---------------------------------------------------------------------------------------------------------

void check_launch(const Launch&);

template <class... Params>
void launch(Context& context, const Launch& how, void (*kernel)(Params...), std::type_identity_t<Params>... args) {
  check_launch(how);
  if (how.grid.x == 0 || how.grid.y == 0 || how.grid.z == 0) return;
  const auto check = [&](cudaError_t error) {
    CHECK(error == cudaSuccess, "CUDA kernel {}: {} ({})", how.name, cudaGetErrorString(error),
          cudaGetErrorName(error));
  };
  if (how.shared_bytes > kMaxStaticSharedBytes)
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(how.shared_bytes)));
  const dim3 blocks(static_cast<unsigned>(how.grid.x), static_cast<unsigned>(how.grid.y),
                    static_cast<unsigned>(how.grid.z));
  kernel<<<blocks, static_cast<unsigned>(how.threads), how.shared_bytes, static_cast<cudaStream_t>(context.stream())>>>(
      args...);
  check(cudaGetLastError());
  context.count_launch();
}

}  // namespace csml::cuda
