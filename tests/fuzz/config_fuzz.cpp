// Any text as a TOML configuration; its lines also as the assignments of --set.
#include "apps/config.h"

#include "tests/fuzz/target.h"

using namespace csml;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  const std::string text(fuzz::text_of({data, bytes}));
  ConfigBuilder builder;
  fuzz::error_of([&] {
    builder.add_toml(text, "fuzz.toml");
    const ResolvedConfig resolved = builder.build();
    ConfigBuilder again;
    again.add_toml(config_toml(resolved), "config.toml");
    fuzz::require(to_json(again.build().config) == to_json(resolved.config),
                  "a resolved configuration is read back to the same values");
  });

  constexpr int kMostLines = 8;
  ConfigBuilder assigned;
  for (size_t at = 0, line = 0; at <= text.size() && line < kMostLines; ++line) {
    const size_t end = std::min(text.find('\n', at), text.size());
    fuzz::error_of([&] { assigned.set_assignment(text.substr(at, end - at)); });
    at = end + 1;
  }
  fuzz::error_of([&] { config_toml(assigned.build()); });
  return 0;
}
