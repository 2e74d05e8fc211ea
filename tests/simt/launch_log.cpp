#include "tests/simt/launch_log.h"

#include <cstdlib>
#include <fstream>

/// A symbol that the symbol table of the program has: what addresses are relative to.
extern "C" {
char csml_simt_anchor = 0;
}

namespace csml::simt {

LaunchLog::LaunchLog() {
  if (const char* file = std::getenv("CSML_SIMT_LAUNCHES")) file_ = file;
}

LaunchLog::~LaunchLog() {
  if (file_.empty()) return;
  std::ofstream out(file_);
  for (const auto& [kernel, threads, shared_bytes, name] : seen_)
    out << static_cast<const char*>(kernel) - &csml_simt_anchor << ' ' << threads << ' ' << shared_bytes << ' ' << name
        << '\n';
}

}  // namespace csml::simt
