// What a run will hold in memory and do, before it starts (csml pretrain --dry-run).
#pragma once

#include <string>

#include "csml/config/config.h"

namespace csml {

/// As text: parameters, queue, batch, steps, epochs, expected arena. Opens the data set and measures the activations of
/// two images on the CPU.
std::string plan_text(const Config& config);

}  // namespace csml
