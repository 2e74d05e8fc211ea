// resolve: checks a configuration as a whole and fills in the values that follow from others.
#pragma once

#include "csml/config/config.h"

namespace csml {

/// Throws UsageError, naming the key, for values that cannot work together. Fills what is derived (schedule.base_lr,
/// schedule.epochs, warm-up epochs).
void resolve(Config& config);

}  // namespace csml
