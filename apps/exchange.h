// Exchange: what a piece of work starts from and what it made of it, in a safetensors file, so that another
// implementation (bench/pytorch) can repeat the work and compare.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "engine/params.h"
#include "engine/safetensors.h"

namespace csml {

class Exchange {
 public:
  /// An array as it is now; images and features in this project's layouts (images [N, H, W, C]).
  void put(const std::string& name, const Tensor& tensor);
  /// A network's parameters and running statistics under prefix + torchvision's names and layouts; `flat` given: what a
  /// tensor laid out like its parameters holds instead (a momentum buffer), without running statistics.
  void put(const std::string& prefix, const Params& params, const Tensor& flat = {});
  /// A number or word that is no array: "temperature" = "0.2".
  void note(const std::string& key, const std::string& value) { notes_[key] = value; }
  void note(const std::string& key, double value) { notes_[key] = cat("{:.9g}", value); }

  /// Throws Error where the file cannot be written.
  void write(const std::filesystem::path& path) const;

 private:
  std::vector<NamedArray> arrays_;
  Metadata notes_;
};

}  // namespace csml
