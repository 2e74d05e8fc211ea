#include "csml/method/method.h"

#include "csml/method/siamese.h"

namespace csml {

std::unique_ptr<Method> make_method(Device& device, const Config& config, int in_channels, Comm& comm) {
  return std::make_unique<Siamese>(device, config, in_channels, plan_of(config), comm);
}

}  // namespace csml
