#include "kernels/cuda/conv_plan.h"

#include <algorithm>

#include "kernels/cuda/check.h"
#include "kernels/cuda/libraries.h"

namespace csml::cuda {

namespace {

using Descriptor = std::shared_ptr<void>;

enum Uid : int64_t { kX = 1, kW = 2, kY = 3 };

Descriptor create(cudnnBackendDescriptorType_t type) {
  cudnnBackendDescriptor_t raw = nullptr;
  CUDNN_CHECK(cudnn().create_descriptor(type, &raw));
  return {raw, [](void* d) {
            if (d) cudnn().destroy_descriptor(d);
          }};
}

/// The attribute type of a C++ value.
template <class T>
constexpr cudnnBackendAttributeType_t kTypeOf = CUDNN_TYPE_VOID_PTR;
template <>
constexpr cudnnBackendAttributeType_t kTypeOf<int64_t> = CUDNN_TYPE_INT64;
template <>
constexpr cudnnBackendAttributeType_t kTypeOf<int32_t> = CUDNN_TYPE_INT32;
template <>
constexpr cudnnBackendAttributeType_t kTypeOf<float> = CUDNN_TYPE_FLOAT;
template <>
constexpr cudnnBackendAttributeType_t kTypeOf<bool> = CUDNN_TYPE_BOOLEAN;
template <>
constexpr cudnnBackendAttributeType_t kTypeOf<char> = CUDNN_TYPE_CHAR;
template <>
constexpr cudnnBackendAttributeType_t kTypeOf<cudnnDataType_t> = CUDNN_TYPE_DATA_TYPE;
template <>
constexpr cudnnBackendAttributeType_t kTypeOf<cudnnConvolutionMode_t> = CUDNN_TYPE_CONVOLUTION_MODE;
template <>
constexpr cudnnBackendAttributeType_t kTypeOf<cudnnBackendHeurMode_t> = CUDNN_TYPE_HEUR_MODE;
template <>
constexpr cudnnBackendAttributeType_t kTypeOf<cudnnBackendNumericalNote_t> = CUDNN_TYPE_NUMERICAL_NOTE;
template <>
constexpr cudnnBackendAttributeType_t kTypeOf<cudnnBackendBehaviorNote_t> = CUDNN_TYPE_BEHAVIOR_NOTE;
template <>
constexpr cudnnBackendAttributeType_t kTypeOf<cudnnBackendKnobType_t> = CUDNN_TYPE_KNOB_TYPE;

template <class T>
void set(const Descriptor& d, cudnnBackendAttributeName_t name, const T* values, int64_t count) {
  CUDNN_CHECK(cudnn().set_attribute(d.get(), name, kTypeOf<T>, count, values));
}
template <class T>
void set(const Descriptor& d, cudnnBackendAttributeName_t name, T value) {
  set(d, name, &value, 1);
}
void set(const Descriptor& d, cudnnBackendAttributeName_t name, void* descriptor) {
  CUDNN_CHECK(cudnn().set_attribute(d.get(), name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &descriptor));
}

/// The values of an attribute, at most `most`.
template <class T>
std::vector<T> get(const Descriptor& d, cudnnBackendAttributeName_t name, int64_t most) {
  std::vector<T> values(static_cast<size_t>(most));
  int64_t count = 0;
  CUDNN_CHECK(cudnn().get_attribute(d.get(), name, kTypeOf<T>, most, &count, values.data()));
  values.resize(static_cast<size_t>(std::min(count, most)));
  return values;
}

/// Descriptors that an attribute refers to, filled into new ones of `type`.
std::vector<Descriptor> get_descriptors(const Descriptor& d, cudnnBackendAttributeName_t name,
                                        cudnnBackendDescriptorType_t type, int64_t most) {
  std::vector<Descriptor> found;
  std::vector<void*> raw;
  for (int64_t i = 0; i < most; ++i) {
    found.push_back(create(type));
    raw.push_back(found.back().get());
  }
  int64_t count = 0;
  CUDNN_CHECK(cudnn().get_attribute(d.get(), name, CUDNN_TYPE_BACKEND_DESCRIPTOR, most, &count, raw.data()));
  found.resize(static_cast<size_t>(std::min(count, most)));
  return found;
}

void set_handle(const Descriptor& d, cudnnBackendAttributeName_t name, void* handle) {
  CUDNN_CHECK(cudnn().set_attribute(d.get(), name, CUDNN_TYPE_HANDLE, 1, &handle));
}

void finalize(const Descriptor& d) { CUDNN_CHECK(cudnn().finalize(d.get())); }

cudnnDataType_t data_type(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return CUDNN_DATA_FLOAT;
    case DType::bf16:
      return CUDNN_DATA_BFLOAT16;
    case DType::f16:
      return CUDNN_DATA_HALF;
    default:
      throw Error(cat("convolution of {}: must be f32, bf16 or f16", name_of(dtype)));
  }
}

/// A channels-last tensor; cuDNN names dimensions in the order n, c, h, w (filters k, c, r, s) whatever their strides.
Descriptor tensor(int64_t uid, DType dtype, int64_t n, int64_t c, int64_t h, int64_t w) {
  const Descriptor d = create(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  const int64_t dims[] = {n, c, h, w}, strides[] = {h * w * c, 1, w * c, c};
  set(d, CUDNN_ATTR_TENSOR_DATA_TYPE, data_type(dtype));
  set(d, CUDNN_ATTR_TENSOR_DIMENSIONS, dims, 4);
  set(d, CUDNN_ATTR_TENSOR_STRIDES, strides, 4);
  set(d, CUDNN_ATTR_TENSOR_UNIQUE_ID, uid);
  set(d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, kConvAlignment);
  finalize(d);
  return d;
}

struct OperationNames {
  cudnnBackendDescriptorType_t type;
  cudnnBackendAttributeName_t conv, x, w, y, alpha, beta;
};

OperationNames names_of(Direction direction) {
  switch (direction) {
    case Direction::forward:
      return {CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
              CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC,
              CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X,
              CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W,
              CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y,
              CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA,
              CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA};
    case Direction::grad_input:
      return {CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR,
              CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC,
              CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX,
              CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W,
              CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY,
              CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA,
              CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA};
    case Direction::grad_weight:
      break;
  }
  return {CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR,
          CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC,
          CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X,
          CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW,
          CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY,
          CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA,
          CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA};
}

bool allowed(const std::vector<cudnnBackendNumericalNote_t>& notes, DType dtype, PlanRules rules) {
  for (const auto note : notes) {
    switch (note) {
      case CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION:
        return false;
      case CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC:
        if (rules.deterministic) return false;
        break;
      case CUDNN_NUMERICAL_NOTE_TENSOR_CORE:
      case CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS:
        if (dtype == DType::f32 && !rules.tf32) return false;
        break;
      case CUDNN_NUMERICAL_NOTE_FFT:
      case CUDNN_NUMERICAL_NOTE_WINOGRAD:
      case CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_4x4:
      case CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_6x6:
      case CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_13x13:
        if (dtype == DType::f32 && !rules.tf32) return false;
        break;
      default:
        break;
    }
  }
  return true;
}

/// The engine and its settings as text; heuristics may propose one configuration twice, in both modes.
std::string describe(const Descriptor& config, const Descriptor& engine) {
  std::string text = cat("engine {}", get<int64_t>(engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, 1).at(0));
  const auto knobs = get_descriptors(config, CUDNN_ATTR_ENGINECFG_KNOB_CHOICES, CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR,
                                     CUDNN_KNOB_TYPE_COUNTS);
  for (size_t i = 0; i < knobs.size(); ++i) {
    const auto type = get<cudnnBackendKnobType_t>(knobs[i], CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, 1).at(0);
    const auto value = get<int64_t>(knobs[i], CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, 1).at(0);
    text += cat("{}{}={}", i ? " " : " (", static_cast<int>(type), value);
  }
  return knobs.empty() ? text : text + ")";
}

}  // namespace

const char* name_of(Direction direction) {
  constexpr const char* kNames[] = {"forward", "grad_input", "grad_weight"};
  return kNames[static_cast<int>(direction)];
}

std::string ConvShape::text() const {
  return cat("{} {} x {} w {} stride {} pad {}", name_of(direction), csml::name_of(dtype), Shape{n, h, w, c}.text(),
             Shape{k, r, s, c}.text(), stride, pad);
}

Card Card::present(void* handle) {
  Card card;
  card.handle_ = handle;
  return card;
}

Card Card::described(const std::string& json) {
  Card card;
  card.properties_ = create(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR);
  set(card.properties_, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, json.data(), static_cast<int64_t>(json.size()));
  finalize(card.properties_);
  return card;
}

ConvGraph::ConvGraph(const ConvShape& shape, const Card& card, PlanRules rules) : card_(card) {
  const Descriptor conv = create(CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);
  const int64_t stride[] = {shape.stride, shape.stride}, pad[] = {shape.pad, shape.pad}, one[] = {1, 1};
  set(conv, CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_DATA_FLOAT);
  set(conv, CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_CROSS_CORRELATION);
  set(conv, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, int64_t{2});
  set(conv, CUDNN_ATTR_CONVOLUTION_DILATIONS, one, 2);
  set(conv, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, stride, 2);
  set(conv, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, pad, 2);
  set(conv, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, pad, 2);
  finalize(conv);

  const Descriptor x = tensor(kX, shape.dtype, shape.n, shape.c, shape.h, shape.w);
  const Descriptor w = tensor(kW, shape.dtype, shape.k, shape.c, shape.r, shape.s);
  const Descriptor y = tensor(kY, shape.dtype, shape.n, shape.k, shape.p(), shape.q());
  const OperationNames names = names_of(shape.direction);
  const Descriptor operation = create(names.type);
  set(operation, names.conv, conv.get());
  set(operation, names.x, x.get());
  set(operation, names.w, w.get());
  set(operation, names.y, y.get());
  set(operation, names.alpha, 1.f);
  set(operation, names.beta, 0.f);
  finalize(operation);

  const Descriptor graph = create(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
  set(graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, operation.get());
  if (card_.handle()) set_handle(graph, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, card_.handle());
  finalize(graph);
  parts_ = {conv, x, w, y, operation, graph};

  for (const auto mode : {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK}) {
    const Descriptor heuristics = create(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    set(heuristics, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph.get());
    set(heuristics, CUDNN_ATTR_ENGINEHEUR_MODE, mode);
    if (card_.properties()) set(heuristics, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, card_.properties());
    if (cudnn().finalize(heuristics.get()) != CUDNN_STATUS_SUCCESS) continue;  // nothing in this mode
    int64_t count = 0;
    CUDNN_CHECK(cudnn().get_attribute(heuristics.get(), CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, 0,
                                      &count, nullptr));
    for (const Descriptor& config :
         get_descriptors(heuristics, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, count)) {
      const auto engines = get_descriptors(config, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_BACKEND_ENGINE_DESCRIPTOR, 1);
      if (engines.empty()) continue;
      const Descriptor& engine = engines[0];
      const auto notes =
          get<cudnnBackendNumericalNote_t>(engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_NUMERICAL_NOTE_TYPE_COUNT);
      if (!allowed(notes, shape.dtype, rules)) continue;
      Config candidate{config, describe(config, engine), false};
      bool known = false;
      for (const Config& other : configs_) known |= other.name == candidate.name;
      if (known) continue;
      for (const auto note :
           get<cudnnBackendBehaviorNote_t>(engine, CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE, CUDNN_BEHAVIOR_NOTE_TYPE_COUNT))
        candidate.compiled_late |= note == CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION;
      configs_.push_back(std::move(candidate));
    }
  }
}

bool ConvGraph::build(int i, ConvPlan& plan, std::string& why) const {
  const Config& config = configs_.at(static_cast<size_t>(i));
  plan.descriptor_ = create(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
  set(plan.descriptor_, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config.descriptor.get());
  if (card_.handle())
    set_handle(plan.descriptor_, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, card_.handle());
  else
    set(plan.descriptor_, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, card_.properties());
  const cudnnStatus_t status = cudnn().finalize(plan.descriptor_.get());
  if (status != CUDNN_STATUS_SUCCESS) {
    char detail[256] = "";
    cudnn().get_last_error_string(detail, sizeof detail);
    why = cat("{} {}", cudnn().get_error_string(status), detail);
    return false;
  }
  plan.parts_ = parts_;
  plan.parts_.push_back(config.descriptor);
  plan.name_ = config.name;
  plan.workspace_ =
      static_cast<size_t>(get<int64_t>(plan.descriptor_, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, 1).at(0));
  return true;
}

void ConvPlan::run(void* handle, const void* x, const void* w, const void* y, void* workspace) const {
  const Descriptor pack = create(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
  const int64_t uids[] = {kX, kW, kY};
  const void* pointers[] = {x, w, y};
  set(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, uids, 3);
  CUDNN_CHECK(
      cudnn().set_attribute(pack.get(), CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, 3, pointers));
  CUDNN_CHECK(cudnn().set_attribute(pack.get(), CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace));
  finalize(pack);
  CUDNN_CHECK(cudnn().execute(static_cast<cudnnHandle_t>(handle), descriptor_.get(), pack.get()));
}

}  // namespace csml::cuda
