#include "csml/method.h"

#include "csml/csml.h"
#include "csml/moco.h"

namespace csml {

std::unique_ptr<Method> make_method(Device& device, const Config& config, int in_channels, Comm& comm) {
  if (config.method.name == "moco") return std::make_unique<MoCo>(device, config, in_channels, comm);
  if (config.method.name == "csml") return std::make_unique<CsMl>(device, config, in_channels, comm);
  throw UsageError(cat("method '{}' is unknown; use csml or moco", config.method.name));
}

}  // namespace csml
