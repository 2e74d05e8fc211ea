#include "kernels/cuda/matmul.h"

#include <algorithm>

#include "kernels/cuda/check.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/libraries.h"

namespace csml::cuda {

namespace {

constexpr size_t kWorkspace = size_t{32} << 20;  // what NVIDIA recommends for Hopper; split sums need it

cudaDataType_t data_type(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return CUDA_R_32F;
    case DType::bf16:
      return CUDA_R_16BF;
    case DType::f16:
      return CUDA_R_16F;
    default:
      throw Error(cat("matmul of {}: must be f32, bf16 or f16", name_of(dtype)));
  }
}

/// The largest power of two up to 256 that divides the address: what cuBLASLt may assume.
uint32_t alignment(const void* data) {
  const auto address = reinterpret_cast<uintptr_t>(data) | 256;
  return static_cast<uint32_t>(address & -address);
}

}  // namespace

struct Matmuls::Key {
  int64_t m = 0, n = 0, k = 0;
  bool transpose_a = false, transpose_b = false, bias = false, accumulate = false;
  DType in = DType::f32, out = DType::f32;
  uint32_t align_a = 1, align_b = 1, align_c = 1;
  bool operator==(const Key&) const = default;
};

struct Matmuls::Hash {
  size_t operator()(const Key& key) const {
    size_t hash = static_cast<size_t>(key.in) * 64 + static_cast<size_t>(key.out) * 8 + key.transpose_a * 4u +
                  key.transpose_b * 2u + key.bias;
    for (const int64_t value : {key.m, key.n, key.k, int64_t{key.accumulate}, int64_t{key.align_a},
                                int64_t{key.align_b}, int64_t{key.align_c}})
      hash = hash * 1000003 + static_cast<size_t>(value);
    return hash;
  }
};

// cuBLASLt thinks in columns: a row-major [M,N] array is its N x M matrix with leading dimension N. So it is asked for
// c^T = b'^T a'^T, with b as its first and a as its second operand.
struct Matmuls::Plan {
  std::shared_ptr<void> desc, first, second, result;
  cublasLtMatmulAlgo_t algorithm{};
};

struct Matmuls::Cache : std::unordered_map<Key, Plan, Hash> {};

Matmuls::Matmuls(Context& context, bool tf32) : context_(context), tf32_(tf32), plans_(std::make_unique<Cache>()) {
  cublasLtHandle_t handle = nullptr;
  CUBLAS_CHECK(cublas_lt().create(&handle));
  handle_ = {handle, [](void* h) { cublas_lt().destroy(static_cast<cublasLtHandle_t>(h)); }};
}

Matmuls::~Matmuls() = default;

const Matmuls::Plan& Matmuls::plan(const Key& key) {
  if (const auto found = plans_->find(key); found != plans_->end()) return found->second;
  const CublasLt& lt = cublas_lt();
  Plan plan;

  cublasLtMatmulDesc_t desc = nullptr;
  CUBLAS_CHECK(lt.desc_create(&desc, key.in == DType::f32 && tf32_ ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F,
                              CUDA_R_32F));
  plan.desc = {desc, [](void* d) { cublas_lt().desc_destroy(static_cast<cublasLtMatmulDesc_t>(d)); }};
  const auto set = [&](cublasLtMatmulDescAttributes_t name, const auto& value) {
    CUBLAS_CHECK(lt.desc_set(desc, name, &value, sizeof value));
  };
  set(CUBLASLT_MATMUL_DESC_TRANSA, key.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N);
  set(CUBLASLT_MATMUL_DESC_TRANSB, key.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N);
  if (key.bias) {
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, data_type(key.out));
  }

  const auto layout = [&](DType dtype, int64_t rows, int64_t columns) {  // of a row-major array
    cublasLtMatrixLayout_t l = nullptr;
    CUBLAS_CHECK(
        lt.layout_create(&l, data_type(dtype), static_cast<uint64_t>(columns), static_cast<uint64_t>(rows), columns));
    return std::shared_ptr<void>(l,
                                 [](void* d) { cublas_lt().layout_destroy(static_cast<cublasLtMatrixLayout_t>(d)); });
  };
  plan.first = key.transpose_b ? layout(key.in, key.n, key.k) : layout(key.in, key.k, key.n);
  plan.second = key.transpose_a ? layout(key.in, key.k, key.m) : layout(key.in, key.m, key.k);
  plan.result = layout(key.out, key.m, key.n);

  cublasLtMatmulPreference_t preference = nullptr;
  CUBLAS_CHECK(lt.preference_create(&preference));
  const std::shared_ptr<void> owner(
      preference, [](void* p) { cublas_lt().preference_destroy(static_cast<cublasLtMatmulPreference_t>(p)); });
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t name, const auto& value) {
    CUBLAS_CHECK(lt.preference_set(preference, name, &value, sizeof value));
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspace);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, key.align_b);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, key.align_a);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, key.align_c);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, key.align_c);

  cublasLtMatmulHeuristicResult_t found{};
  int count = 0;
  const auto as_layout = [](const std::shared_ptr<void>& l) { return static_cast<cublasLtMatrixLayout_t>(l.get()); };
  const cublasStatus_t status = lt.get_heuristic(static_cast<cublasLtHandle_t>(handle_.get()), desc,
                                                 as_layout(plan.first), as_layout(plan.second), as_layout(plan.result),
                                                 as_layout(plan.result), preference, 1, &found, &count);
  CHECK(status == CUBLAS_STATUS_SUCCESS && count > 0,
        "cuBLASLt has no algorithm for a product of {} [{}, {}] by [{}, {}] into {}{} ({})", name_of(key.in), key.m,
        key.k, key.k, key.n, name_of(key.out), key.bias ? " with bias" : "", lt.get_status_string(status));
  plan.algorithm = found.algo;
  return plans_->emplace(key, std::move(plan)).first->second;
}

void Matmuls::matmul(const Backend::Matmul& args) {
  const Shape &a = args.a.shape, &b = args.b.shape, &c = args.c.shape;
  CHECK(a.rank() == 2 && b.rank() == 2 && c.rank() == 2, "matmul needs matrices, got {} x {} -> {}", a.text(), b.text(),
        c.text());
  const int64_t m = a[args.transpose_a ? 1 : 0], k = a[args.transpose_a ? 0 : 1];
  const int64_t n = b[args.transpose_b ? 0 : 1];
  CHECK(b[args.transpose_b ? 1 : 0] == k && c == (Shape{m, n}), "matmul: {}{} x {}{} -> {} does not fit", a.text(),
        args.transpose_a ? "^T" : "", b.text(), args.transpose_b ? "^T" : "", c.text());
  CHECK(!args.bias || args.bias.shape == Shape{n}, "matmul: bias is {}, must be [{}]", args.bias.shape.text(), n);
  CHECK(args.a.dtype == args.b.dtype && (args.c.dtype == args.a.dtype || args.c.dtype == DType::f32) &&
            (!args.bias || args.bias.dtype == args.c.dtype || args.bias.dtype == DType::f32),
        "matmul: element types {} x {} + {} -> {}; a and b must agree, c be theirs or f32, bias c's or f32",
        name_of(args.a.dtype), name_of(args.b.dtype), name_of(args.bias.dtype), name_of(args.c.dtype));
  if (m == 0 || n == 0) return;

  const bool accumulate = args.write == Write::accumulate;
  if (k == 0) {  // an empty sum: what is left is the bias
    if (!args.bias && !accumulate) fill(context_, {.y = args.c, .value = 0});
    for (int64_t i = 0; args.bias && i < m; ++i) {
      auto* row = static_cast<std::byte*>(args.c.data) + static_cast<size_t>(i * n) * size_of(args.c.dtype);
      axpy(context_, {.x = args.bias, .y = {row, {n}, args.c.dtype}, .write = args.write});
    }
    return;
  }

  // Scratch: [workspace][bias in c's type].
  auto* scratch = static_cast<std::byte*>(context_.scratch(kWorkspace + static_cast<size_t>(n) * sizeof(float)));
  const void* bias = args.bias.data;
  if (args.bias && (args.bias.dtype != args.c.dtype || alignment(bias) < 16)) {
    const View converted{scratch + kWorkspace, {n}, args.c.dtype};
    axpy(context_, {.x = args.bias, .y = converted});
    bias = converted.data;
  }
  const Plan& p =
      plan({m, n, k, args.transpose_a, args.transpose_b, static_cast<bool>(args.bias), accumulate, args.a.dtype,
            args.c.dtype, alignment(args.a.data), alignment(args.b.data), alignment(args.c.data)});
  const CublasLt& lt = cublas_lt();
  auto* desc = static_cast<cublasLtMatmulDesc_t>(p.desc.get());
  if (bias) CUBLAS_CHECK(lt.desc_set(desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias));
  const float alpha = 1, beta = accumulate ? 1 : 0;
  const auto as_layout = [](const std::shared_ptr<void>& l) { return static_cast<cublasLtMatrixLayout_t>(l.get()); };
  CUBLAS_CHECK(lt.matmul(static_cast<cublasLtHandle_t>(handle_.get()), desc, &alpha, args.b.data, as_layout(p.first),
                         args.a.data, as_layout(p.second), &beta, args.c.data, as_layout(p.result), args.c.data,
                         as_layout(p.result), &p.algorithm, scratch, kWorkspace,
                         static_cast<cudaStream_t>(context_.stream())));
}

}  // namespace csml::cuda
