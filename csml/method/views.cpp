#include "csml/method/views.h"

namespace csml {

ViewInput::ViewInput(Device& device, int64_t batch, const ViewSpec& spec, DType dtype)
    : spec_(spec),
      pixels_(device, {batch, spec.augment.crop_size, spec.augment.crop_size, spec.augment.channels}, DType::u8),
      params_(device, {batch, ColorParams::kColumns}),
      dtype_(dtype) {}

void ViewInput::upload(const ViewBatch& batch) {
  pixels_.upload(batch.images);
  params_.upload(batch.params);
}

Tensor ViewInput::made(const Tensor& pixels, const Tensor& params) const {
  Tensor out(pixels.device(), pixels.shape(), dtype_);
  augment(pixels, params, out, spec_.augment.mean, spec_.augment.std);
  return out;
}

}  // namespace csml
