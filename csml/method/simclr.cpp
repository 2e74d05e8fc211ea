// SimCLR (Chen et al. 2020, NT-Xent): one encoder; the negatives of a view are both views of every other image of the
// global batch, and the gradient reaches anchors, positives and negatives.
//   L = 1/(2B) sum over both views of all images: -log exp(a.b/T) / sum_{c != a} exp(a.c/T)
#include <cmath>

#include "csml/method/base.h"

namespace csml {

Base simclr_base() {
  return {.name = "simclr",
          .help = "SimCLR: one encoder, the batch's other views as negatives",
          .momentum_encoder = false,
          .negatives = Base::Negatives::anchors_and_keys,
          .directions = 2,
          .head_bn = "all",
          .loss = contrastive_loss,
          .factor = [](const Config& c) { return 1.0 / c.method.directions; },
          .chance =
              [](const Config& c) {
                return std::log((c.method.partner_negatives ? 4.0 : 2.0) * (c.train.batch_size - 1) + 1);
              }};
}

}  // namespace csml
