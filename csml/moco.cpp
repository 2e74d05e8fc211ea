#include "csml/moco.h"

namespace csml {

MoCo::MoCo(Device& device, const Config& config, int in_channels, Comm& comm)
    : MomentumContrast(device, config, in_channels, comm), one_(Tensor::full(device, {1}, 1.f)) {
  add_view({ViewSpec::Source::own, config_.augment, 0});
  add_view({ViewSpec::Source::own, config_.augment, 1, 0});
}

std::vector<MomentumContrast::Term> MoCo::terms() {
  const Tensor k = embed_key(view_images(1), 0);
  enqueue_ = k;
  return {{"q", embed_query(view_images(0)), {k}, one_}};
}

}  // namespace csml
