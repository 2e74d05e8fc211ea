// Rehearsal: one process that moves, on one device, what its reductions between processes would move.
#pragma once

#include <memory>

#include "engine/comm.h"

namespace csml {

/// Every reduction is a copy of its tensor's bytes into scratch memory, on a second stream where the device has one;
/// between fork() and join() copies run beside the step. Values are those of one process. How much of the copies' time
/// a step does not hide is a stand-in, on one card, for exposed communication on several.
std::unique_ptr<Comm> rehearsal(Device& device);

}  // namespace csml
