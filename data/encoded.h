// A data set of image files (JPEG, PNG, …), wherever those lie: decoded when they are asked for.
#pragma once

#include <string>
#include <vector>

#include "data/dataset.h"
#include "data/spec.h"

namespace csml {

/// Images as files of JPEG, PNG, …, wherever those lie: decoded when they are asked for.
class EncodedDataset : public Dataset {
 public:
  EncodedDataset(const DatasetSpec& spec, const DecodeLimits& limits);

  bool in_memory() const override { return false; }
  std::string pixels_text() const override;
  bool encoded(int64_t i, std::vector<uint8_t>& bytes) const override;
  ImageView view(int64_t i, LoadScratch& scratch, const ChooseRegion& region) const override;

 protected:
  /// The bytes of image i's file. Throws Error with the reason (without the name).
  virtual void read(int64_t i, std::vector<uint8_t>& bytes) const = 0;
  const DecodeLimits& limits() const { return limits_; }

 private:
  DecodeLimits limits_;
  int size_;
  bool exif_;
};

}  // namespace csml
