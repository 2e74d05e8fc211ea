// A data set of image files in a file system.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "data/encoded.h"

namespace csml {

class FileDataset : public EncodedDataset {
 public:
  FileDataset(const DatasetSpec& spec, const DecodeLimits& limits, std::string root, std::vector<std::string> files,
              std::vector<int> labels, std::vector<std::string> class_names, std::string note = "",
              std::map<std::string, int64_t> left_out = {});

  std::string name(int64_t i) const override;
  uint64_t fingerprint() const override;

 protected:
  void read(int64_t i, std::vector<uint8_t>& bytes) const override;
  void select(const std::vector<int64_t>& keep) override;

 private:
  std::string root_;
  std::vector<std::string> files_;  // relative to root_, or absolute
};

}  // namespace csml
