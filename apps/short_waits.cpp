#include "apps/short_waits.h"

#include <unistd.h>

#include <cstdlib>
#include <string_view>

#include "kernels/check.h"

namespace csml {
namespace {

std::string_view environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

}  // namespace

std::string waits_in_force() {
  for (const char* name : {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"})
    if (const std::string_view value = environment(name); !value.empty()) return cat("{}={}", name, value);
  return "";
}

void prefer_short_waits(char** argv) {
  // Under valgrind the program's file is valgrind's own.
  if (!waits_in_force().empty() || environment("LD_PRELOAD").find("vgpreload") != std::string_view::npos) return;
  if (::setenv("GOMP_SPINCOUNT", kShortWait, 1) == 0) ::execv("/proc/self/exe", argv);
}

}  // namespace csml
