// Linear support vector machines on frozen features, one against the rest: the VOC07 protocol of PCL (eval_svm_voc.py)
// and VISSL, for single-label data.
#pragma once

#include <vector>

#include "csml/evaluation/features.h"

namespace csml {

struct SvmOptions {
  double cost = 0.5;           // C
  double positive_weight = 2;  // of C for a class's own images; the others have 1
  double tolerance = 1e-4;     // of the gradient's norm, relative to the start
};

struct SvmResult {
  double mean_ap = 0;            // percent, mean over the classes that have test images
  double top1 = 0;               // percent: the class of the highest decision value
  std::vector<double> ap;        // [C] percent; NaN for a class without test images
  std::vector<float> weights;    // [C, D]
  std::vector<float> intercept;  // [C]
};

/// Per class c with y_i = +1 for its images and -1 for all others:
///   min over (w, b)  1/2 (|w|^2 + b^2) + C sum_i k_i max(0, 1 - y_i (w . x_i + b))^2,   k_i = positive_weight or 1
/// by liblinear's trust-region Newton method on the primal (its optimum is that of the dual which the reference
/// solves). `rows` chooses training images; empty: all. liblinear holds 16 bytes per feature value of those. Throws
/// Error where a class has no training image or everything is of one class.
SvmResult train_svm(const Features& train, const std::vector<int32_t>& rows, const Features& test, int class_count,
                    const SvmOptions& options);

/// Area under the precision envelope, in [0, 1]: sum over the positives, by descending score, of
/// (recall step) * max precision at that or a higher recall (VOC 2010's rule, which PCL and VISSL use for VOC07 too).
/// Equal scores: by index. NaN without a positive.
double average_precision(const std::vector<float>& scores, const std::vector<bool>& positive);

}  // namespace csml
