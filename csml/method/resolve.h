// resolve: checks a configuration as a whole and fills in the values that follow from others.
#pragma once

#include "csml/config/table.h"

namespace csml {

/// The table of keys with the names of the methods as the words of method.name and method.base.
std::vector<ConfigKey> config_keys_of_methods(Config& config);

/// Throws UsageError, naming the key, for values that a key may not have (the table of keys says which), and for values that cannot work together. Fills what is derived (schedule.base_lr,
/// schedule.epochs, warm-up epochs).
void resolve(Config& config);

}  // namespace csml
