// The processes of one job train one run: they must have been started alike.
#pragma once

#include "csml/config/config.h"
#include "engine/comm.h"
#include "engine/device.h"

namespace csml {

/// A collective. Throws UsageError on every process where one has another program (version, commit) or another resolved
/// configuration than rank 0; it names the rank, the first key and both values. The places of the data (the images
/// themselves are compared by their fingerprint), loader threads, compute threads and devices may differ.
void check_same_start(const Config& config, Device& device, Comm& comm);

}  // namespace csml
