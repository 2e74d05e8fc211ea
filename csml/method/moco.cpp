// MoCo v2 (He et al. 2020; Chen et al. 2020): positives from the momentum encoder, negatives from the queue.
//   L = -log exp(q.k/T) / (exp(q.k/T) + sum_{n in Q} exp(q.n/T))
#include <cmath>

#include "csml/method/base.h"

namespace csml {

namespace {

Var loss(const LossInput& in) {
  const MethodConfig& m = in.config.method;
  if (!streams_queue(m)) return contrastive_loss(in);
  std::vector<Tensor> positives;
  for (const Var& positive : in.positives) positives.push_back(positive.value());
  return info_nce(in.anchor, positives, in.weights, in.bank.value(), static_cast<float>(m.temperature), in.similarity);
}

}  // namespace

bool streams_queue(const MethodConfig& config) { return config.form == "csml" && config.queue_filter >= 1; }

Base moco_base() {
  return {.name = "moco",
          .help = "MoCo v2: momentum encoder and a queue of keys",
          .negatives = Base::Negatives::queue,
          .queue = true,
          .loss = loss,
          .factor = [](const Config&) { return 1.0; },
          .chance = [](const Config& c) { return std::log(static_cast<double>(c.method.queue) + 1); }};
}

}  // namespace csml
