// Features of a whole data set by a frozen encoder, and the raw pixels as the baseline every encoder must beat.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "csml/method/encoder.h"
#include "data/dataset.h"
#include "data/loader.h"
#include "engine/comm.h"

namespace csml {

/// What go_on asked for.
class Interrupted : public Error {
 public:
  Interrupted() : Error("stopped on request") {}
};

struct FeatureOptions {
  EvalTransform transform;
  AugmentConfig normalise;  // mean and std
  bool projection = false;  // the head's output instead of the backbone's pooled features
  bool l2_normalise = true;
  DType dtype = DType::f32;  // of the features; f16 has 11 bits for their values, which lie in [-1, 1] (GPU only)
  int batch_size = 256, workers = 2;
  double max_bad_share = 0.05;  // of unreadable images; beyond it an error
  std::function<void(int64_t done, int64_t total)> progress;
  BadImageCallback on_bad_image;
  /// Asked before each batch, on every process equally often; false: throws Interrupted.
  std::function<bool()> go_on;
  Comm* comm = &Comm::alone();  // its processes share the images out, whole batches each; all get all the features
};

struct Features {
  Tensor values;            // [N, D], on the device
  std::vector<int> labels;  // [N], -1 = none
  int64_t bad_images = 0;   // met by this process
};

/// Inference mode (running statistics), images un-augmented.
Features extract_features(Device& device, const Encoder& encoder, const Dataset& dataset,
                          const FeatureOptions& options);
/// By a network of one's own: `embed` takes normalised images [n,S,S,C] to rows [n,dim], n at most batch_size, and is
/// called without building a graph. projection is not looked at.
Features extract_features(Device& device, int64_t dim, const std::function<Tensor(const Tensor& images)>& embed,
                          const Dataset& dataset, const FeatureOptions& options);
/// Channel-normalised pixels, flattened (size x size x channels).
Features pixel_features(Device& device, const Dataset& dataset, const FeatureOptions& options);

}  // namespace csml
