// MoCo v3 (Chen, Xie, He 2021): momentum encoder, predictor, the global batch's keys as negatives, no queue.
//   L = 2 T sum over both directions of -log exp(pred(a_i).b_i/T) / sum_j exp(pred(a_i).b_j/T)
#include <cmath>

#include "csml/method/base.h"

namespace csml {

Base mocov3_base() {
  return {.name = "mocov3",
          .help = "MoCo v3: momentum encoder and predictor, the batch's keys as negatives",
          .predictor = true,
          .negatives = Base::Negatives::keys,
          .directions = 2,
          .head_bn = "all",
          .loss = contrastive_loss,
          .factor = [](const Config& c) { return 2 * c.method.temperature; },
          .chance =
              [](const Config& c) {
                return std::log((c.method.partner_negatives ? 2.0 : 1.0) * (c.train.batch_size - 1) + 1);
              }};
}

}  // namespace csml
