#include "tests/backend.h"

#include <cstdlib>

#include "tests/simt/simt_backend.h"

namespace csml::test {

std::string backend_under_test() {
  const char* name = std::getenv("CSML_TEST_BACKEND");
  return name ? name : "cpu";
}

std::unique_ptr<Device> open_backend(const std::string& spec) {
  return spec == "simt" ? std::make_unique<Device>(std::make_unique<SimtBackend>()) : Device::open(spec);
}

std::unique_ptr<Device> open_backend() { return open_backend(backend_under_test()); }

const std::set<std::string>& not_on_simt_yet() {
  static const std::set<std::string> calls = {"row_dot",       "scale_rows",         "multi_positive",
                                              "gather_window", "gather_window_grad", "best_window"};
  return calls;
}

std::string missing_call(const std::set<std::string>& calls) {
  if (backend_under_test() != "simt") return "";
  for (const std::string& call : calls)
    if (not_on_simt_yet().count(call)) return call;
  return "";
}

}  // namespace csml::test
