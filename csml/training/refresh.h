// The refresh of the neighbour table, and how a run looks at un-augmented images for it and for its online k-NN.
#pragma once

#include "csml/evaluation/features.h"
#include "csml/training/run_state.h"

namespace csml {

/// eval.* as the feature extraction takes it.
FeatureOptions online_feature_options(const Config& config, Comm& comm);

/// Replaces the neighbour table by that of the position's epoch, with purity and churn: nearest neighbours by the key
/// encoder, or random partners, or partners by label (method.partner). A collective. Throws Interrupted when go_on (may be empty) says no;
/// the state is then what it was.
void find_neighbors(Device& device, Comm& comm, RunState& state, BadImageCallback on_bad_image,
                    std::function<bool()> go_on);

}  // namespace csml
