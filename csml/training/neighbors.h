// The neighbour table of CsMl's cross-samples: exact nearest neighbours of every training image by the key encoder's
// pooled trunk features, un-augmented, running statistics (docs/method.md, 2.1).
#pragma once

#include <memory>
#include <vector>

#include "csml/evaluation/features.h"
#include "data/loader.h"

namespace csml {

/// The k nearest of each row among the other rows of unit features [N, D]; the row itself is excluded by index.
/// similarity, if given, receives [N * k] inner products. The processes of `comm` share the rows out; all get the
/// table.
NeighborTable nearest_neighbors(const Tensor& features, int k, std::vector<float>* similarity = nullptr,
                                Comm& comm = Comm::alone());
/// Share of neighbours whose label is the image's; -1 where there are no labels. Labels are used for logging only.
double neighbor_purity(const NeighborTable& table, const std::vector<int>& labels);
/// Share of entries that were not in the same row before (order inside a row does not count); 1 when `before` is empty.
double neighbor_churn(const NeighborTable& before, const NeighborTable& now);

}  // namespace csml
