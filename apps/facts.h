// What csml pretrain --preset auto finds out before it chooses: images that it looks at, memory, cores or card, and the
// time of a training step.
#pragma once

#include <cstdint>

#include "apps/chooser.h"
#include "csml/config/config.h"
#include "data/dataset.h"
#include "engine/device.h"

namespace csml {

/// Bytes that a run may still take on the host: what is free, no more than the control group allows. 0: unknown.
uint64_t available_host_memory();

/// All facts but the speed. Decodes up to 64 images, spread over the data set; unreadable ones are left out. Throws Error
/// when none can be read.
Facts look_at(const Dataset& data, const Device& device, double hours);

/// FLOP per second (step_flop) of a training step of `config` on images of `data`: the median of three steps after a first one. A guess
/// where the data set is smaller than a batch.
double measure_speed(Device& device, const Config& config, const Dataset& data);

}  // namespace csml
