#include "csml/evaluation/svm.h"

#include <linear.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>

#include "engine/ops.h"

namespace csml {

namespace {

/// liblinear's form of dense rows: (index, value) pairs, the intercept's constant 1, an end mark.
class Problem {
 public:
  Problem(const std::vector<float>& values, int64_t dim, const std::vector<int32_t>& rows)
      : width_(static_cast<size_t>(dim) + 2), nodes_(rows.size() * width_) {
    for (size_t i = 0; i < rows.size(); ++i) {
      feature_node* node = nodes_.data() + i * width_;
      const float* row = values.data() + static_cast<size_t>(rows[i]) * static_cast<size_t>(dim);
      for (int64_t d = 0; d < dim; ++d) node[d] = {static_cast<int>(d + 1), row[d]};
      node[dim] = {static_cast<int>(dim + 1), 1.0};
      node[dim + 1] = {-1, 0};
      pointers_.push_back(node);
    }
    problem_ = {
        .l = static_cast<int>(rows.size()), .n = static_cast<int>(dim + 1), .y = nullptr, .x = nullptr, .bias = 1};
  }
  /// The same rows for another class's labels; y must outlive the use.
  problem with_labels(std::vector<double>* y) {
    problem p = problem_;
    p.x = pointers_.data();
    p.y = y->data();
    return p;
  }

 private:
  size_t width_;
  std::vector<feature_node> nodes_;
  std::vector<feature_node*> pointers_;
  problem problem_{};
};

struct FreeModel {
  void operator()(model* m) const { free_and_destroy_model(&m); }
};

}  // namespace

double average_precision(const std::vector<float>& scores, const std::vector<bool>& positive) {
  CHECK(scores.size() == positive.size(), "{} scores for {} images", scores.size(), positive.size());
  std::vector<size_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return scores[a] > scores[b]; });
  std::vector<double> precision;  // at each positive
  for (size_t rank = 0; rank < order.size(); ++rank)
    if (positive[order[rank]])
      precision.push_back(static_cast<double>(precision.size() + 1) / static_cast<double>(rank + 1));
  if (precision.empty()) return std::numeric_limits<double>::quiet_NaN();
  double sum = 0, best = 0;
  for (size_t i = precision.size(); i-- > 0;) {
    best = std::max(best, precision[i]);
    sum += best;
  }
  return sum / static_cast<double>(precision.size());
}

SvmResult train_svm(const Features& train_set, const std::vector<int32_t>& chosen, const Features& test_set,
                    int class_count, const SvmOptions& o) {
  CHECK(class_count > 1, "an SVM needs at least two classes");
  std::vector<int32_t> rows = chosen;
  if (rows.empty()) {
    rows.resize(train_set.labels.size());
    std::iota(rows.begin(), rows.end(), 0);
  }
  const auto classes = static_cast<size_t>(class_count);
  std::vector<int64_t> count(classes);
  for (int32_t r : rows) ++count[static_cast<size_t>(train_set.labels[static_cast<size_t>(r)])];
  for (size_t c = 0; c < classes; ++c)
    if (count[c] == 0 || count[c] == static_cast<int64_t>(rows.size()))
      throw Error(cat("SVM: {} of {} training images are of class {}; one-against-rest needs some and others", count[c],
                      rows.size(), c));
  const int64_t dim = train_set.values.shape()[1];
  const std::vector<float> values = train_set.values.host<float>();
  for (float v : values) CHECK(std::isfinite(v), "the features hold NaN or infinity: the encoder has diverged");
  Problem problem_of(values, dim, rows);

  SvmResult result;
  result.weights.resize(classes * static_cast<size_t>(dim));
  result.intercept.resize(classes);
  set_print_string_function([](const char*) {});
#pragma omp parallel for schedule(dynamic)
  for (size_t c = 0; c < classes; ++c) {
    std::vector<double> y;
    for (int32_t r : rows) y.push_back(train_set.labels[static_cast<size_t>(r)] == static_cast<int>(c) ? 1 : -1);
    const problem problem_c = problem_of.with_labels(&y);
    int weighted[] = {1, -1};
    double weights[] = {o.positive_weight, 1};
    const parameter parameters{.solver_type = L2R_L2LOSS_SVC,
                               .eps = o.tolerance,
                               .C = o.cost,
                               .nr_weight = 2,
                               .weight_label = weighted,
                               .weight = weights,
                               .p = 0,
                               .init_sol = nullptr};
    const std::unique_ptr<model, FreeModel> trained(train(&problem_c, &parameters));
    const double sign = trained->label[0] == 1 ? 1 : -1;  // decision values speak of the first label
    for (int64_t d = 0; d < dim; ++d)
      result.weights[c * static_cast<size_t>(dim) + static_cast<size_t>(d)] = static_cast<float>(sign * trained->w[d]);
    result.intercept[c] = static_cast<float>(sign * trained->w[dim]);
  }

  Device& device = test_set.values.device();
  const NoGrad no_grad;
  const std::vector<float> decision =
      linear(Var(test_set.values), Var(Tensor::from(device, {class_count, dim}, result.weights)),
             Var(Tensor::from(device, {class_count}, result.intercept)))
          .value()
          .host<float>();
  const size_t n = test_set.labels.size();
  int64_t right = 0;
  for (size_t i = 0; i < n; ++i) {
    const auto row = decision.begin() + static_cast<std::ptrdiff_t>(i * classes);
    right += std::max_element(row, row + class_count) - row == test_set.labels[i];
  }
  result.top1 = 100.0 * static_cast<double>(right) / static_cast<double>(n);
  double sum = 0;
  int with_images = 0;
  for (size_t c = 0; c < classes; ++c) {
    std::vector<float> scores(n);
    std::vector<bool> positive(n);
    for (size_t i = 0; i < n; ++i) {
      scores[i] = decision[i * classes + c];
      positive[i] = test_set.labels[i] == static_cast<int>(c);
    }
    result.ap.push_back(100 * average_precision(scores, positive));
    if (std::isnan(result.ap.back())) continue;
    sum += result.ap.back();
    ++with_images;
  }
  result.mean_ap = sum / std::max(1, with_images);
  return result;
}

}  // namespace csml
