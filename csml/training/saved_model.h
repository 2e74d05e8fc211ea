// A pretrained encoder from disk: a run folder, a checkpoint folder, or a torchvision-named safetensors file.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include "csml/method/encoder.h"
#include "engine/checkpoint.h"

namespace csml {

struct SavedModel {
  std::unique_ptr<Encoder> encoder;
  Config config;        // as the run had it
  std::string source;   // the checkpoint used
  std::string content;  // XXH3-128 of the file of weights, as `xxhsum -H2` prints it
  int64_t step = 0, epoch = 0;
  std::string which;  // "q" or "k"
  int in_channels = 3;
  bool has_head = true;  // false: the file holds a backbone, or a head that is none of ours; it has random weights then
};

/// The newest good checkpoint of a run folder, or the one in a checkpoint folder. Throws Error.
Checkpoint find_checkpoint(const std::filesystem::path& path);

/// A whole checkpoint as one safetensors file (csml export --what state): where its parts are in it.
inline constexpr const char* kStatePrefix = "state.";   // before the names of state.safetensors
inline constexpr const char* kStateStep = "csml.step";  // metadata: as in the manifest
inline constexpr const char* kStateEpoch = "csml.epoch";
inline constexpr const char* kStateUser = "csml.user";

/// Throws Error that names the first f32 array with a value that is NaN or infinite, and how many values are.
void check_finite(const std::vector<NamedArray>& arrays, const std::string& place);

/// path: run folder (its newest good checkpoint), checkpoint folder, or FILE.safetensors with torchvision names (a
/// plain backbone; its architecture is recognised from the shapes). which: "q" or "k".
SavedModel load_model(Device& device, const std::filesystem::path& path, const std::string& which);

/// Mean and deviation as a file of csml export states them in its metadata; `otherwise` where it says nothing. Throws
/// Error for text that is no list of numbers and for deviations that are not positive.
AugmentConfig file_normalisation(const SafetensorsFile& file, AugmentConfig otherwise);

/// Recognises depth, width, stem, head from torchvision-named array shapes. Throws Error when it is no ResNet of ours.
ModelConfig recognise_model(const SafetensorsFile& file, const std::string& prefix, int* in_channels, bool* has_head);
/// The same from torchvision's names and shapes; `place` stands for the file in messages.
using ArrayShapes = std::map<std::string, Shape>;
ModelConfig recognise_model(const ArrayShapes& shapes, const std::string& place, int* in_channels, bool* has_head);

/// Fills an encoder from torchvision-named arrays; without has_head the projection head keeps its values and a
/// classifier in the file (fc.weight) is ignored. Throws Error for another architecture.
void load_torchvision(Encoder& encoder, const SafetensorsFile& file, bool has_head);

}  // namespace csml
