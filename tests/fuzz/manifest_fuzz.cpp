// Any bytes as the manifest of a checkpoint and as RUN/latest. A manifest carries its own checksum, which changed bytes
// do not match; so what is JSON is tried a second time with the right one.
#include "engine/checkpoint.h"

#include "tests/fuzz/target.h"

using namespace csml;
using nlohmann::json;

namespace {

constexpr const char* kFolder = "checkpoints/step_00000007";

/// A run with one checkpoint, whose two files are good.
struct Run {
  Run() {
    std::filesystem::create_directories(scratch.folder() / kFolder);
    const std::vector<float> values{1, 2, 3};
    const HostArray array{"a", DType::f32, Shape{3}, values.data()};
    for (const char* name : {"model.safetensors", "state.safetensors"})
      write_safetensors(scratch.folder() / kFolder / name, {&array, 1});
  }
  fuzz::Scratch scratch;
};

std::string with_checksum(json manifest) {
  manifest.erase("manifest_xxh3_128");
  const std::string text = manifest.dump();
  manifest["manifest_xxh3_128"] = digest_of(text.data(), text.size()).hex;
  return manifest.dump(2) + "\n";
}

/// The input as JSON, if it is an object that is not nested deeper than a manifest may be.
json object_of(std::string_view text) {
  bool deep = false;
  const json parsed = json::parse(
      text,
      [&](int depth, json::parse_event_t, json&) {
        deep |= depth > 60;
        return !deep;
      },
      false);
  return parsed.is_object() && !deep ? parsed : json();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  static const Run run;
  const std::string_view text = fuzz::text_of({data, bytes});
  const std::string name = cat("{}/manifest.json", kFolder);
  run.scratch.put("latest", text);
  run.scratch.put(name, text);
  const auto ignore = [](const std::string&) {};
  newest_checkpoint(run.scratch.folder(), ignore);  // never throws: what does not verify is left out

  if (const json manifest = object_of(text); manifest.is_object()) {
    run.scratch.put(name, with_checksum(manifest));
    fuzz::error_of([&] {
      const Checkpoint checkpoint = open_checkpoint(run.scratch.folder() / kFolder);
      fuzz::require(checkpoint.model().contains("a"), "an accepted checkpoint can be read");
    });
    newest_checkpoint(run.scratch.folder(), ignore);
  }
  return 0;
}
