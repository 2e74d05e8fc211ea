// A ResNet as an ONNX model (operator set 17), written without ONNX's libraries. Message and field numbers: onnx.proto3
// of https://github.com/onnx/onnx; operators: its docs/Operators.md.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "engine/safetensors.h"

namespace csml {

/// The bytes of a model. weights: torchvision's names and layouts (models/weights.h), f32; the graph follows from them:
/// blocks from the names, the stem from conv1's 7x7 (stride 2, then max pooling) or 3x3, a head from fc.*.
///   input  "images"     f32 [batch, C, height, width], normalised
///   output "features"   f32 [batch, D], pooled trunk
///   output "projection" f32 [batch, dim], unit rows; only with a head (fc, or fc.0 - ReLU - fc.2)
/// Batch norms stay BatchNormalization nodes with their running statistics. `metadata` becomes the model's properties.
/// Throws Error when an array is missing or not f32.
std::string onnx_resnet(const std::vector<NamedArray>& weights, const Metadata& metadata);

/// The initializers of such a model, for reading back what was written. Throws Error for bytes that are no such model.
std::map<std::string, NamedArray> onnx_initializers(std::string_view model);

}  // namespace csml
