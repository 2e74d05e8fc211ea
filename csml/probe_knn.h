// k-nearest-neighbour classification of frozen features (Wu et al. 2018, InstDisc; DINO's protocol).
//   score_c(x) = sum_{i in NN_k(x)} exp(u_x . u_i / T) [y_i = c]
#pragma once

#include <vector>

#include "csml/features.h"

namespace csml {

struct KnnResult {
  int k = 0;
  double temperature = 0;
  double top1 = 0, top5 = 0;  // percent
};

/// One search serves every k asked. Throws Error when either side has no labels. The processes of `comm`, which all
/// hold all the features, share the test rows out.
std::vector<KnnResult> knn_classify(const Features& train, const Features& test, int class_count,
                                    const std::vector<int>& ks, double temperature, Comm& comm = Comm::alone());

}  // namespace csml
