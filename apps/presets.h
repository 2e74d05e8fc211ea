// Presets: the files of configs/, inside the binary (cmake/embed_presets.cmake writes the definition).
#pragma once

#include <string>
#include <vector>

namespace csml {

struct Preset {
  std::string name;
  std::string text;  // TOML; begins with "# source: …" and "# cost: …"
};

std::vector<Preset> presets();

}  // namespace csml
