// A stand-in for cuDNN's graph API on the host, by its documentation: descriptors are bags of attributes, a plan of one
// convolution computes it in plain loops. One engine, which wants a workspace. Refuses wrong attribute types, use
// before finalize, pointers off alignment, and answers 16-bit factors with a 16-bit result only, as cuDNN does.
#include <cudnn.h>

#include <algorithm>
#include <map>
#include <vector>

#include "tests/vendor/loops.h"

using csml::test::Element;

namespace {

constexpr int64_t kWorkspace = 1000;

struct Descriptor {
  cudnnBackendDescriptorType_t type;
  bool finalized = false;
  struct Value {
    cudnnBackendAttributeType_t type;
    int64_t count;
    std::vector<std::byte> bytes;
  };
  std::map<cudnnBackendAttributeName_t, Value> values;

  template <class T>
  T at(cudnnBackendAttributeName_t name, size_t i = 0) const {
    T value{};
    std::memcpy(&value, values.at(name).bytes.data() + i * sizeof(T), sizeof(T));
    return value;
  }
  const Descriptor& child(cudnnBackendAttributeName_t name) const { return *at<Descriptor*>(name); }
};

size_t size_of(cudnnBackendAttributeType_t type) {
  switch (type) {
    case CUDNN_TYPE_INT64:
    case CUDNN_TYPE_DOUBLE:
    case CUDNN_TYPE_HANDLE:
    case CUDNN_TYPE_VOID_PTR:
    case CUDNN_TYPE_BACKEND_DESCRIPTOR:
      return 8;
    case CUDNN_TYPE_BOOLEAN:
    case CUDNN_TYPE_CHAR:
      return 1;
    default:
      return 4;
  }
}

struct Image {
  Element element;
  int64_t d[4], stride[4];
  void* data;
  double get(int64_t n, int64_t c, int64_t h, int64_t w) const {
    return load(data, element, n * stride[0] + c * stride[1] + h * stride[2] + w * stride[3]);
  }
  void set(int64_t n, int64_t c, int64_t h, int64_t w, double value) const {
    store(data, element, n * stride[0] + c * stride[1] + h * stride[2] + w * stride[3], value);
  }
};

/// A tensor of the operation with its pointer in the pack; data is null where it does not fit.
Image image(const Descriptor& tensor, const Descriptor& pack) {
  Image t{};
  const auto type = tensor.at<cudnnDataType_t>(CUDNN_ATTR_TENSOR_DATA_TYPE);
  t.element = type == CUDNN_DATA_FLOAT ? Element::f32 : type == CUDNN_DATA_BFLOAT16 ? Element::bf16 : Element::f16;
  for (size_t i = 0; i < 4; ++i) {
    t.d[i] = tensor.at<int64_t>(CUDNN_ATTR_TENSOR_DIMENSIONS, i);
    t.stride[i] = tensor.at<int64_t>(CUDNN_ATTR_TENSOR_STRIDES, i);
  }
  const auto uid = tensor.at<int64_t>(CUDNN_ATTR_TENSOR_UNIQUE_ID);
  for (size_t i = 0; i < 3; ++i)
    if (pack.at<int64_t>(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, i) == uid)
      t.data = pack.at<void*>(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, i);
  const auto alignment = static_cast<uintptr_t>(tensor.at<int64_t>(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT));
  if (reinterpret_cast<uintptr_t>(t.data) % alignment != 0) t.data = nullptr;
  return t;
}

/// f(x pixel, w element, y pixel) for every product of the convolution.
template <class F>
void for_products(const Image& x, const Image& w, const Image& y, int64_t stride, int64_t pad, F f) {
  for (int64_t n = 0; n < y.d[0]; ++n)
    for (int64_t k = 0; k < y.d[1]; ++k)
      for (int64_t p = 0; p < y.d[2]; ++p)
        for (int64_t q = 0; q < y.d[3]; ++q)
          for (int64_t c = 0; c < x.d[1]; ++c)
            for (int64_t r = 0; r < w.d[2]; ++r)
              for (int64_t s = 0; s < w.d[3]; ++s) {
                const int64_t h = p * stride + r - pad, v = q * stride + s - pad;
                if (h >= 0 && h < x.d[2] && v >= 0 && v < x.d[3]) f(n, k, p, q, c, r, s, h, v);
              }
}

cudnnStatus_t convolve(const Descriptor& op, const Descriptor& pack) {
  struct Names {
    cudnnBackendAttributeName_t conv, x, w, y, alpha, beta;
  };
  const bool forward = op.type == CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR;
  const bool data = op.type == CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR;
  const Names names =
      forward ? Names{CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X,
                      CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W,         CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y,
                      CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA,     CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA}
      : data
          ? Names{CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX,
                  CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W,         CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY,
                  CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA,     CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA}
          : Names{CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC,
                  CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X,
                  CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW,
                  CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY,
                  CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA,
                  CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA};
  const Image x = image(op.child(names.x), pack), w = image(op.child(names.w), pack),
              y = image(op.child(names.y), pack);
  if (!x.data || !w.data || !y.data) return CUDNN_STATUS_BAD_PARAM_MISALIGNED_POINTER;
  if (x.element != w.element || x.element != y.element) return CUDNN_STATUS_NOT_SUPPORTED;
  if (op.at<float>(names.alpha) != 1 || op.at<float>(names.beta) != 0) return CUDNN_STATUS_NOT_SUPPORTED;
  const Descriptor& conv = op.child(names.conv);
  const auto stride = conv.at<int64_t>(CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES);
  const auto pad = conv.at<int64_t>(CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS);
  const Image& result = forward ? y : data ? x : w;
  std::vector<double> sums(static_cast<size_t>(result.d[0] * result.d[1] * result.d[2] * result.d[3]), 0.0);
  const auto at = [&](int64_t a, int64_t b, int64_t c, int64_t d) -> double& {
    return sums[static_cast<size_t>(((a * result.d[1] + b) * result.d[2] + c) * result.d[3] + d)];
  };
  for_products(x, w, y, stride, pad, [&](auto n, auto k, auto p, auto q, auto c, auto r, auto s, auto h, auto v) {
    if (forward)
      at(n, k, p, q) += x.get(n, c, h, v) * w.get(k, c, r, s);
    else if (data)
      at(n, c, h, v) += y.get(n, k, p, q) * w.get(k, c, r, s);
    else
      at(k, c, r, s) += y.get(n, k, p, q) * x.get(n, c, h, v);
  });
  for (int64_t a = 0; a < result.d[0]; ++a)
    for (int64_t b = 0; b < result.d[1]; ++b)
      for (int64_t c = 0; c < result.d[2]; ++c)
        for (int64_t d = 0; d < result.d[3]; ++d) result.set(a, b, c, d, at(a, b, c, d));
  return CUDNN_STATUS_SUCCESS;
}

}  // namespace

extern "C" {

size_t cudnnGetVersion() { return CUDNN_VERSION; }
const char* cudnnGetErrorString(cudnnStatus_t) { return "the stand-in's status"; }
void cudnnGetLastErrorString(char* message, size_t) { message[0] = '\0'; }
cudnnStatus_t cudnnCreate(cudnnHandle_t* handle) {
  *handle = reinterpret_cast<cudnnHandle_t>(new int(1));
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnDestroy(cudnnHandle_t handle) {
  delete reinterpret_cast<int*>(handle);
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnSetStream(cudnnHandle_t, cudaStream_t) { return CUDNN_STATUS_SUCCESS; }

cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t* descriptor) {
  *descriptor = new Descriptor{.type = type, .finalized = false, .values = {}};
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t descriptor) {
  delete static_cast<Descriptor*>(descriptor);
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t raw) {
  Descriptor& d = *static_cast<Descriptor*>(raw);
  if (d.finalized) return CUDNN_STATUS_BAD_PARAM;
  d.finalized = true;
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t raw, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t count, const void* values) {
  Descriptor& d = *static_cast<Descriptor*>(raw);
  if (d.finalized) return CUDNN_STATUS_BAD_PARAM;
  if (type == CUDNN_TYPE_BACKEND_DESCRIPTOR && !(*static_cast<Descriptor* const*>(values))->finalized)
    return CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED;
  const auto* bytes = static_cast<const std::byte*>(values);
  d.values[name] = {type, count, {bytes, bytes + static_cast<size_t>(count) * size_of(type)}};
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t raw, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t, int64_t wanted, int64_t* count, void* values) {
  const Descriptor& d = *static_cast<const Descriptor*>(raw);
  if (!d.finalized) return CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED;
  const auto fill = [&](cudnnBackendAttributeName_t inside, const void* value) {  // of a descriptor the caller made
    Descriptor& made = **static_cast<Descriptor**>(values);
    const auto* bytes = reinterpret_cast<const std::byte*>(&value);
    made.values[inside] = {CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, {bytes, bytes + sizeof value}};
    made.finalized = true;
  };
  switch (name) {
    case CUDNN_ATTR_ENGINEHEUR_RESULTS:
      *count = d.at<cudnnBackendHeurMode_t>(CUDNN_ATTR_ENGINEHEUR_MODE) == CUDNN_HEUR_MODE_A ? 1 : 0;
      if (*count && wanted > 0)
        fill(CUDNN_ATTR_ENGINE_OPERATION_GRAPH, d.at<void*>(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH));
      return CUDNN_STATUS_SUCCESS;
    case CUDNN_ATTR_ENGINECFG_ENGINE:
      *count = 1;
      fill(CUDNN_ATTR_ENGINE_OPERATION_GRAPH, d.at<void*>(CUDNN_ATTR_ENGINE_OPERATION_GRAPH));
      return CUDNN_STATUS_SUCCESS;
    case CUDNN_ATTR_ENGINE_GLOBAL_INDEX:
    case CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE:
      *count = 1;
      *static_cast<int64_t*>(values) = name == CUDNN_ATTR_ENGINE_GLOBAL_INDEX ? 0 : kWorkspace;
      return CUDNN_STATUS_SUCCESS;
    case CUDNN_ATTR_ENGINE_NUMERICAL_NOTE:
    case CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE:
    case CUDNN_ATTR_ENGINECFG_KNOB_CHOICES:
      *count = 0;
      return CUDNN_STATUS_SUCCESS;
    default:
      return CUDNN_STATUS_NOT_SUPPORTED;
  }
}

cudnnStatus_t cudnnBackendExecute(cudnnHandle_t handle, cudnnBackendDescriptor_t raw_plan,
                                  cudnnBackendDescriptor_t raw_pack) {
  const Descriptor &plan = *static_cast<Descriptor*>(raw_plan), &pack = *static_cast<Descriptor*>(raw_pack);
  if (!plan.finalized || !pack.finalized) return CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED;
  if (plan.at<cudnnHandle_t>(CUDNN_ATTR_EXECUTION_PLAN_HANDLE) != handle) return CUDNN_STATUS_BAD_PARAM;
  auto* workspace = pack.at<void*>(CUDNN_ATTR_VARIANT_PACK_WORKSPACE);
  if (!workspace) return CUDNN_STATUS_BAD_PARAM_NULL_POINTER;
  std::memset(workspace, 0xFF, kWorkspace);  // whoever keeps something there notices
  const Descriptor& graph =
      plan.child(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG).child(CUDNN_ATTR_ENGINE_OPERATION_GRAPH);
  return convolve(graph.child(CUDNN_ATTR_OPERATIONGRAPH_OPS), pack);
}

}  // extern "C"
