// csml linear --augment: the full protocol, apart from the cached one of apps/linear.cpp.
#pragma once

#include "apps/feature_source.h"
#include "csml/evaluation/probe_linear_augmented.h"

namespace csml {

struct LinearAugmented {
  AugmentedProbeOptions probe;
  double crop_min = 0.08;  // least share of an image's area in a training crop
};
int run_linear_augmented(const LabelledOptions& asked, LinearAugmented& o);

}  // namespace csml
