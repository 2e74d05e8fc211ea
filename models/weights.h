// A network's state as host arrays under torchvision's names and layouts (filters [K, C, R, S]), and back.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "engine/params.h"
#include "engine/safetensors.h"

namespace csml {

/// Parameters and running statistics, prefix + name each. `flat` empty: the parameters themselves; else a tensor laid
/// out like Params::master() (a momentum buffer, gradients), without running statistics.
std::vector<NamedArray> to_host(const Params& params, const std::string& prefix, const Tensor& flat = {});

/// The same of host copies of Params::master() and Params::buffers().
std::vector<NamedArray> to_host(const Params& params, const std::string& prefix, std::span<const float> parameters,
                                std::span<const float> statistics);

/// The reverse: takes `prefix + name` for every parameter (and running statistic when flat is empty) from `arrays`.
/// A missing name or another shape throws, saying which; names that the network lacks are returned.
std::vector<std::string> from_host(const Params& params, const std::vector<NamedArray>& arrays,
                                   const std::string& prefix, const Tensor& flat = {});

/// torchvision's name of a ResNet's array under detectron2's: conv1 -> stem.conv1, layer1.0.bn2.bias ->
/// res2.0.conv2.norm.bias, layer1.0.downsample.1.weight -> res2.0.shortcut.norm.weight (detectron2's
/// tools/convert-torchvision-to-d2.py). Empty for what detectron2's backbone lacks: fc.*, num_batches_tracked.
std::string detectron2_name(const std::string& torchvision);
/// The reverse; empty for a name that is none of detectron2's ResNet.
std::string torchvision_name(const std::string& detectron2);

/// [K,R,S,C] -> [K,C,R,S] and back.
std::vector<float> to_kcrs(const float* krsc, const Shape& krsc_shape);
std::vector<float> to_krsc(const float* kcrs, const Shape& krsc_shape);

}  // namespace csml
