#include "csml/config/config.h"

namespace csml {

bool uses_partner(const MethodConfig& m) {
  return m.name == "csml" &&
         (m.terms != std::vector<std::string>{"q"} || m.weights[1] != 0 || m.warmup_weights[1] != 0);
}

}  // namespace csml
