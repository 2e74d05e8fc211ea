// BYOL (Grill et al. 2020): a predictor on the anchor, no negatives.
//   L = sum over both directions of 2 - 2 pred(a).b,  b from the momentum encoder
#include "csml/method/base.h"

namespace csml {

namespace {

Var loss(const LossInput& in) {
  return multi_positive(row_dots(in.anchor, in.positives), {}, in.weights, {.form = Backend::Form::cosine},
                        in.similarity);
}

}  // namespace

Base byol_base() {
  return {.name = "byol",
          .help = "BYOL: momentum encoder and predictor, no negatives",
          .predictor = true,
          .negatives = Base::Negatives::none,
          .directions = 2,
          .head_bn = "hidden",
          .loss = loss,
          .factor = [](const Config&) { return 1.0; },
          .chance = [](const Config&) { return 2.0; }};
}

}  // namespace csml
