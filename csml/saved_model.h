// A pretrained encoder from disk: a run folder, a checkpoint folder, or a torchvision-named safetensors file.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "csml/encoder.h"
#include "engine/checkpoint.h"

namespace csml {

struct SavedModel {
  std::unique_ptr<Encoder> encoder;
  Config config;       // as the run had it
  std::string source;  // the checkpoint used
  int64_t step = 0, epoch = 0;
  std::string which;  // "q" or "k"
  int in_channels = 3;
};

/// path: run folder (its newest good checkpoint), checkpoint folder, or FILE.safetensors with torchvision names (a
/// plain backbone; its architecture is recognised from the shapes). which: "q" or "k".
SavedModel load_model(Device& device, const std::filesystem::path& path, const std::string& which);

/// Recognises depth, width, stem, head from torchvision-named array shapes. Throws Error when it is no ResNet of ours.
ModelConfig recognise_model(const SafetensorsFile& file, const std::string& prefix, int* in_channels, bool* has_head);

/// Fills an encoder from torchvision-named arrays; without has_head the projection head keeps its values and a
/// classifier in the file (fc.weight) is ignored. Throws Error for another architecture.
void load_torchvision(Encoder& encoder, const SafetensorsFile& file, bool has_head);

}  // namespace csml
