// What a run will hold in memory and do, before it starts (csml pretrain --dry-run), and whether that is there.
#pragma once

#include <cstdint>
#include <string>

#include "csml/config/config.h"
#include "data/dataset.h"

namespace csml {

/// Bytes of device memory that a run is expected to hold. Activations are those that a step of one process keeps for
/// backward; the estimate leaves out scratch memory and what evaluations need.
struct MemoryPlan {
  int64_t parameters = 0;     // a number, not bytes
  double state = 0;           // both encoders, gradient, momentum, and their 16-bit copies
  double queue = 0;           // of all levels
  double activations = 0;     // of one query forward of a part of the batch
  double query_forwards = 0;  // in units of a full view
  double total() const { return state + queue + 1.15 * activations * query_forwards; }
};

/// For one of `processes` that share the batch. Measures the activations of two images on the CPU.
MemoryPlan memory_plan(const Config& config, const Dataset& train, int processes = 1);

/// The plan as text: data, steps, parameters, queue, activations, total. Opens the data set.
std::string plan_text(const Config& config);

/// Throws UsageError with what to change where `plan` needs more than `available` bytes.
void check_memory(const MemoryPlan& plan, const Config& config, uint64_t available);

}  // namespace csml
