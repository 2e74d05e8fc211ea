// A stand-in for cuBLASLt on the host, by its documentation: D = alpha * op(A) op(B) + beta * C + bias, matrices
// column-major with a leading dimension, bias along the rows of D. Refuses what does not fit together, pointers less
// aligned than the heuristics were told, and workspaces that are too small.
#include <cublasLt.h>

#include <algorithm>
#include <vector>

#include "tests/vendor/loops.h"

using csml::test::Element;

namespace {

constexpr size_t kWorkspace = 1 << 20;

struct Desc {
  cublasComputeType_t compute;
  cublasOperation_t a = CUBLAS_OP_N, b = CUBLAS_OP_N;
  cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  const void* bias = nullptr;
  cudaDataType_t bias_type = CUDA_R_32F;
};
struct Layout {
  cudaDataType_t type;
  int64_t rows, columns, ld;
};
struct Preference {
  uint64_t workspace = 0;
  uint32_t align[4] = {256, 256, 256, 256};
};
/// What a heuristic's answer promises, in its opaque words.
struct Algorithm {
  uint64_t magic = 0;
  uint32_t align[4] = {};
};
static_assert(sizeof(Algorithm) <= sizeof(cublasLtMatmulAlgo_t));
constexpr uint64_t kMagic = 0x5EED;

Element element(cudaDataType_t type) {
  return type == CUDA_R_32F ? Element::f32 : type == CUDA_R_16BF ? Element::bf16 : Element::f16;
}

bool fits(const Desc& desc, const Layout& a, const Layout& b, const Layout& c, const Layout& d) {
  const int64_t m = desc.a == CUBLAS_OP_N ? a.rows : a.columns, k = desc.a == CUBLAS_OP_N ? a.columns : a.rows;
  const int64_t k2 = desc.b == CUBLAS_OP_N ? b.rows : b.columns, n = desc.b == CUBLAS_OP_N ? b.columns : b.rows;
  for (const Layout* l : {&a, &b, &c, &d})
    if (l->ld < l->rows || l->rows < 1 || l->columns < 1) return false;
  return k == k2 && d.rows == m && d.columns == n && c.rows == m && c.columns == n && a.type == b.type &&
         c.type == d.type && (d.type == a.type || d.type == CUDA_R_32F);
}

bool is_aligned(const void* data, uint32_t to) { return reinterpret_cast<uintptr_t>(data) % to == 0; }

}  // namespace

extern "C" {

size_t cublasLtGetVersion() { return CUBLAS_VERSION; }
const char* cublasLtGetStatusString(cublasStatus_t) { return "the stand-in's status"; }
cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  *handle = reinterpret_cast<cublasLtHandle_t>(new int(1));
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  delete reinterpret_cast<int*>(handle);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* desc, cublasComputeType_t compute, cudaDataType_t) {
  *desc = reinterpret_cast<cublasLtMatmulDesc_t>(new Desc{.compute = compute});
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
  delete reinterpret_cast<Desc*>(desc);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t raw, cublasLtMatmulDescAttributes_t name,
                                              const void* value, size_t bytes) {
  Desc& desc = *reinterpret_cast<Desc*>(raw);
  const auto set = [&](auto& member) {
    if (bytes != sizeof member) return CUBLAS_STATUS_INVALID_VALUE;
    std::memcpy(&member, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
  };
  switch (name) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
      return set(desc.a);
    case CUBLASLT_MATMUL_DESC_TRANSB:
      return set(desc.b);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
      return set(desc.epilogue);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
      return set(desc.bias);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
      return set(desc.bias_type);
    default:
      return CUBLAS_STATUS_NOT_SUPPORTED;
  }
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType_t type, uint64_t rows,
                                          uint64_t columns, int64_t ld) {
  *layout = reinterpret_cast<cublasLtMatrixLayout_t>(
      new Layout{type, static_cast<int64_t>(rows), static_cast<int64_t>(columns), ld});
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete reinterpret_cast<Layout*>(layout);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  *preference = reinterpret_cast<cublasLtMatmulPreference_t>(new Preference);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  delete reinterpret_cast<Preference*>(preference);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t raw,
                                                    cublasLtMatmulPreferenceAttributes_t name, const void* value,
                                                    size_t bytes) {
  Preference& preference = *reinterpret_cast<Preference*>(raw);
  const auto set = [&](auto& member) {
    if (bytes != sizeof member) return CUBLAS_STATUS_INVALID_VALUE;
    std::memcpy(&member, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
  };
  switch (name) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
      return set(preference.workspace);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
      return set(preference.align[0]);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
      return set(preference.align[1]);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
      return set(preference.align[2]);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
      return set(preference.align[3]);
    default:
      return CUBLAS_STATUS_NOT_SUPPORTED;
  }
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,
                                              cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c,
                                              cublasLtMatrixLayout_t d, cublasLtMatmulPreference_t raw, int wanted,
                                              cublasLtMatmulHeuristicResult_t results[], int* count) {
  const auto layout = [](cublasLtMatrixLayout_t l) -> const Layout& { return *reinterpret_cast<Layout*>(l); };
  const Preference& preference = *reinterpret_cast<Preference*>(raw);
  *count = 0;
  if (!fits(*reinterpret_cast<Desc*>(desc), layout(a), layout(b), layout(c), layout(d)))
    return CUBLAS_STATUS_INVALID_VALUE;
  if (wanted < 1 || preference.workspace < kWorkspace) return CUBLAS_STATUS_NOT_SUPPORTED;
  Algorithm algorithm{.magic = kMagic};
  std::copy(preference.align, preference.align + 4, algorithm.align);
  std::memcpy(&results[0].algo, &algorithm, sizeof algorithm);
  *count = 1;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t raw, const void* alpha, const void* a,
                              cublasLtMatrixLayout_t layout_a, const void* b, cublasLtMatrixLayout_t layout_b,
                              const void* beta, const void* c, cublasLtMatrixLayout_t layout_c, void* d,
                              cublasLtMatrixLayout_t layout_d, const cublasLtMatmulAlgo_t* algo, void* workspace,
                              size_t workspace_bytes, cudaStream_t) {
  const auto layout = [](cublasLtMatrixLayout_t l) -> const Layout& { return *reinterpret_cast<Layout*>(l); };
  const Desc& desc = *reinterpret_cast<Desc*>(raw);
  const Layout &la = layout(layout_a), &lb = layout(layout_b), &lc = layout(layout_c), &ld = layout(layout_d);
  Algorithm algorithm;
  std::memcpy(static_cast<void*>(&algorithm), algo, sizeof algorithm);
  if (!fits(desc, la, lb, lc, ld) || algorithm.magic != kMagic || workspace_bytes < kWorkspace || !workspace)
    return CUBLAS_STATUS_INVALID_VALUE;
  const void* pointers[] = {a, b, c, d};
  for (int i = 0; i < 4; ++i)
    if (!is_aligned(pointers[i], algorithm.align[i])) return CUBLAS_STATUS_INVALID_VALUE;
  const bool has_bias = desc.epilogue == CUBLASLT_EPILOGUE_BIAS;
  if (has_bias && (!desc.bias || desc.bias_type != ld.type || !is_aligned(desc.bias, 16)))
    return CUBLAS_STATUS_INVALID_VALUE;
  std::memset(workspace, 0xFF, kWorkspace);  // whoever keeps something there notices

  const Element in = element(la.type), out = element(ld.type);
  const int64_t k = desc.a == CUBLAS_OP_N ? la.columns : la.rows;
  const double scale = *static_cast<const float*>(alpha), keep = *static_cast<const float*>(beta);
  for (int64_t j = 0; j < ld.columns; ++j)
    for (int64_t i = 0; i < ld.rows; ++i) {
      double sum = 0;
      for (int64_t l = 0; l < k; ++l)
        sum += load(a, in, desc.a == CUBLAS_OP_N ? i + l * la.ld : l + i * la.ld) *
               load(b, in, desc.b == CUBLAS_OP_N ? l + j * lb.ld : j + l * lb.ld);
      double value = scale * sum;
      if (keep != 0) value += keep * load(c, out, i + j * lc.ld);
      if (has_bias) value += load(desc.bias, out, i);
      store(d, out, i + j * ld.ld, value);
    }
  return CUBLAS_STATUS_SUCCESS;
}

}  // extern "C"
