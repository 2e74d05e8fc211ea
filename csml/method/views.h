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
  Tensor images() const { return made(pixels_, params_); }
  /// Of rows [first, first + count), or of the rows that index (i32) lists.
  Tensor images(int64_t first, int64_t count) const {
    return made(pixels_.rows(first, count), params_.rows(first, count));
  }
  Tensor images(const Tensor& index) const { return made(gather(pixels_, index), gather(params_, index)); }

 private:
  Tensor made(const Tensor& pixels, const Tensor& params) const;

  ViewSpec spec_;
  Tensor pixels_, params_;
  DType dtype_;
};

}  // namespace csml
