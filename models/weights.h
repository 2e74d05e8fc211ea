// A network's state as host arrays under torchvision's names and layouts (filters [K, C, R, S]), and back.
#pragma once

#include <string>
#include <vector>

#include "engine/params.h"
#include "engine/safetensors.h"

namespace csml {

/// Parameters and running statistics, prefix + name each. `flat` empty: the parameters themselves; else a tensor laid
/// out like Params::master() (a momentum buffer, gradients), without running statistics.
std::vector<NamedArray> to_host(const Params& params, const std::string& prefix, const Tensor& flat = {});

/// The reverse: takes `prefix + name` for every parameter (and running statistic when flat is empty) from `arrays`.
/// A missing name or another shape throws, saying which; names that the network lacks are returned.
std::vector<std::string> from_host(const Params& params, const std::vector<NamedArray>& arrays,
                                   const std::string& prefix, const Tensor& flat = {});

/// [K,R,S,C] -> [K,C,R,S] and back.
std::vector<float> to_kcrs(const float* krsc, const Shape& krsc_shape);
std::vector<float> to_krsc(const float* kcrs, const Shape& krsc_shape);

}  // namespace csml
