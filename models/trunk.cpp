#include "models/trunk.h"

#include <map>

namespace csml {

namespace {

std::map<std::string, MakeTrunk>& registry() {
  static std::map<std::string, MakeTrunk> trunks;
  return trunks;
}

}  // namespace

void register_trunk(const std::string& name, MakeTrunk make) {
  if (name.empty() || name == "resnet")
    throw UsageError(cat("a network cannot be registered under the name '{}'", name));
  registry()[name] = std::move(make);
}

const MakeTrunk& registered_trunk(const std::string& name) {
  const auto found = registry().find(name);
  if (found != registry().end()) return found->second;
  std::string known = "resnet";
  for (const auto& [other, make] : registry()) known += ", " + other;
  throw UsageError(cat("model.trunk = '{}' is a network that this program does not have; known are: {}", name, known));
}

}  // namespace csml
