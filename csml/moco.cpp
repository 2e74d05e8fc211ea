#include "csml/moco.h"

namespace csml {

MoCo::MoCo(Device& device, const Config& config, int in_channels)
    : MomentumContrast(device, config, in_channels), one_(Tensor::full(device, {1}, 1.f)) {
  for (uint32_t number : {0u, 1u}) add_view({ViewSpec::Source::own, config_.augment, number});
}

std::vector<MomentumContrast::Term> MoCo::terms() {
  const Tensor k = embed_key(view_images(1), 0);
  enqueue_ = k;
  return {{"q", embed_query(view_images(0)), {k}, one_}};
}

}  // namespace csml
