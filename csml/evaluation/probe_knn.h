// k-nearest-neighbour classification of frozen features (Wu et al. 2018, InstDisc; DINO's protocol).
//   score_c(x) = sum_{i in NN_k(x)} exp(u_x . u_i / T) [y_i = c]
#pragma once

#include <vector>

#include "csml/evaluation/features.h"

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

/// The same for training features that come in blocks, so that only the test features and one block are in memory:
/// [M, D] + [block, D] floats and the M x k best so far.
class KnnStream {
 public:
  /// k: the largest that classify() will be asked for.
  KnnStream(Features queries, int k);
  /// The next training rows. Of equal similarities the earlier row stays.
  void add(const Features& block);
  /// Of what was added so far. Throws Error when that is nothing or a label is missing.
  std::vector<KnnResult> classify(int class_count, const std::vector<int>& ks, double temperature) const;

 private:
  Features queries_;
  int k_, found_ = 0;
  int64_t rows_ = 0;
  std::vector<float> similarity_;  // [M, found_], descending
  std::vector<int> label_;         // [M, found_]
};

}  // namespace csml
