// Any bytes as the header of a file of weights: which ResNet is it.
#include "csml/training/saved_model.h"

#include "engine/safetensors.h"
#include "tests/fuzz/target.h"

using namespace csml;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  fuzz::Input input(data, bytes);
  // Every network here has empty arrays only: their shapes are what is recognised.
  fuzz::error_of([&] {
    const SafetensorsHeader header = parse_safetensors_header(fuzz::text_of(input.rest()), 0, "fuzz");
    ArrayShapes shapes;
    for (const auto& [name, info] : header.arrays) shapes[name] = info.shape;
    int channels = 0;
    bool has_head = false;
    const ModelConfig model = recognise_model(shapes, "fuzz", &channels, &has_head);
    fuzz::require(channels >= 1 && model.width >= 1 && model.width <= 1024, "an encoder of these extents can be built");
    fuzz::require(!has_head || (model.head_hidden >= 1 && model.dim >= 1), "a head of these extents can be built");
  });
  return 0;
}
