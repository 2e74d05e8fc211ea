// Views on the device: the loader's u8 crops and colour parameters, uploaded each step and turned into images inside
// it.
#pragma once

#include <vector>

#include "data/loader.h"
#include "engine/ops.h"

namespace csml {

/// The inputs of one view, in memory that stays the same from step to step.
class ViewInput {
 public:
  ViewInput(Device& device, int64_t batch, const ViewSpec& spec, DType dtype = DType::f32);
  void upload(const ViewBatch& batch);
  /// Augmented, normalised images [B, S, S, C] of the element type; part of the step.
  Tensor images() const;

 private:
  ViewSpec spec_;
  Tensor pixels_, params_;
  DType dtype_;
};

}  // namespace csml
