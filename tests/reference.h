// What each call of kernels/backend.h must compute: naive loops in double, one function per formula. Gradient tests
// differentiate the forward functions numerically, which double allows and f32 does not.
#pragma once

#include <vector>

#include "tests/test.h"

namespace csml::test::reference {

Array relu(const Array& x);
/// dx of relu given its output y.
Array relu_grad(const Array& dy, const Array& y);
Array column_sum(const Array& x);
Array gather(const Array& x, const Array& index);
Array add(const Array& a, const Array& b);
/// sum_i a[i] * b[i]
double dot(const Array& a, const Array& b);

Array conv2d(const Array& x, const Array& w, int stride, int pad);
Array conv2d_grad_input(const Array& dy, const Array& w, Shape x, int stride, int pad);
Array conv2d_grad_weight(const Array& dy, const Array& x, Shape w, int stride, int pad);
/// bias may be empty.
Array matmul(const Array& a, const Array& b, const Array& bias, bool transpose_a, bool transpose_b);

struct MaxPool {
  Array y, argmax;
};
MaxPool max_pool(const Array& x, int window, int stride, int pad);
Array max_pool_grad(const Array& dy, const Array& argmax, Shape x, int window, int stride, int pad);
Array global_avg_pool(const Array& x);
Array global_avg_pool_grad(const Array& dy, Shape x);

struct BatchNorm {
  Array y, mean, rstd, batch_mean, batch_var;
};
/// residual may be empty.
BatchNorm batch_norm(const Array& x, const Array& gamma, const Array& beta, const Array& residual, int groups,
                     double eps, bool relu);
struct BatchNormGrad {
  Array dx, dresidual, dgamma, dbeta;
};
/// dy2 may be empty; y may be empty where relu is false.
BatchNormGrad batch_norm_grad(const Array& dy, const Array& dy2, const Array& x, const Array& y, const Array& gamma,
                              const Array& mean, const Array& rstd, int groups, bool relu);
Array batch_norm_inference(const Array& x, const Array& gamma, const Array& beta, const Array& mean, const Array& var,
                           const Array& residual, double eps, bool relu);

struct L2Normalize {
  Array y, norm;
};
L2Normalize l2_normalize(const Array& x, double eps);
Array l2_normalize_grad(const Array& dy, const Array& y, const Array& norm);

struct InfoNce {
  double loss = 0;
  Array dquery, positive_similarity;
  double negative_similarity = 0;
};
InfoNce info_nce(const Array& query, const std::vector<Array>& positives, const Array& weights, const Array& queue,
                 double temperature);
struct CrossEntropy {
  double loss = 0;
  Array dlogits;
  double correct = 0;
};
CrossEntropy cross_entropy(const Array& logits, const Array& labels);
/// y[i] = a[i,:] . b[i,:]
Array row_dot(const Array& a, const Array& b);
/// scale[i] * x[i,:]
Array scale_rows(const Array& x, const Array& scale);
struct MultiPositive {
  double loss = 0;
  Array dpositives, dnegatives, positive_similarity;
  double negative_similarity = 0;
};
/// negatives, own, ids may be empty. Derivatives by the formulas of the probabilities, written apart from the loss.
MultiPositive multi_positive(const Array& positives, const Array& negatives, const Array& weights, const Array& own,
                             const Array& ids, const std::vector<Array>& close, double threshold, double temperature,
                             Backend::Form form);

Array gather_window(const Array& x, const Array& corner, int64_t rows, int64_t columns);
Array gather_window_grad(const Array& dy, const Array& corner, Shape x);
Array best_window(const Array& x, const Array& key, int stride);

struct TopK {
  Array scores, index;
};
/// exclude may be empty. Where fewer than k rows are left: score -infinity, index -1.
TopK top_k(const Array& queries, const Array& bank, const Array& exclude, int k);

void sgd(const Array& grad, Array& param, Array& buffer, double lr, double momentum, double weight_decay);
void lars(const Array& grad, Array& param, Array& buffer, const Array& offsets, const Array& adapt, double lr,
          double momentum, double weight_decay, double trust);
void adamw(const Array& grad, Array& param, Array& first, Array& second, Array& step, double lr, double beta1,
           double beta2, double eps, double weight_decay);
void ema(const Array& x, Array& y, double momentum);
void ring_write(const Array& rows, Array& queue, Array& cursor);

/// params may be empty.
Array augment(const Array& images, const Array& params, const std::array<float, 4>& mean,
              const std::array<float, 4>& std);
Array cut_mix(const Array& a, const Array& b, const Array& box);

}  // namespace csml::test::reference
