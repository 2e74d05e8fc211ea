#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/scratch.h"

namespace csml::cpu {

namespace {

using Form = Backend::Form;
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int kMost = ConstViews::kMax;

void check_shape(const char* op, const char* name, const ConstView& x, const Shape& shape) {
  CHECK(x && x.shape == shape, "{}: {} is {}, must be {}", op, name, x.shape.text(), shape.text());
}

/// log(exp(a) + exp(b)); -infinity is exp's 0, NaN stays.
double log_add(double a, double b) {
  if (a == -kInfinity) return b;
  if (b == -kInfinity) return a;
  return std::max(a, b) + std::log1p(std::exp(-std::fabs(a - b)));
}

double softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::fabs(x))); }

/// Loss of one anchor from its logits s_j and log Z. pull[j] = d loss / d s_j; push = d loss / d log Z.
struct Anchor {
  double loss = 0, push = 0;
  std::array<double, kMost> pull{};
};

Anchor anchor_loss(Form form, int count, const float* w, const std::array<double, kMost>& s, double log_z) {
  Anchor a;
  double total = 0, most = 0;
  for (int j = 0; j < count; ++j) {
    total += w[j];
    most = std::max<double>(most, w[j]);
  }
  if (total == 0) return a;
  if (form == Form::csml) {
    for (int j = 0; j < count; ++j) {
      const double gap = log_z - s[j];  // a positive's share of its softmax is 1 / (1 + exp(gap))
      a.loss += w[j] * softplus(gap);
      a.pull[j] = -w[j] / (1 + std::exp(-gap));
      a.push -= a.pull[j];
    }
    return a;
  }
  std::array<double, kMost> log_u{};
  double log_sum = -kInfinity;
  for (int j = 0; j < count; ++j) {
    log_u[j] = w[j] > 0 ? std::log(w[j] / most) + s[j] : -kInfinity;
    log_sum = log_add(log_sum, log_u[j]);
  }
  const double log_d = log_add(log_sum, log_z);
  for (int j = 0; j < count; ++j) {
    a.pull[j] = total * std::exp(log_u[j] - log_d);
    if (form == Form::out) {
      a.loss += w[j] > 0 ? w[j] * (log_d - s[j]) : 0;
      a.pull[j] -= w[j];
    } else {
      a.pull[j] -= total * std::exp(log_u[j] - log_sum);
    }
  }
  if (form == Form::mil) a.loss = total * (log_d - log_sum);
  if (form == Form::in) a.loss = total * (log_d - log_sum - std::log(most / total));
  a.push = total * std::exp(log_z - log_d);
  return a;
}

}  // namespace

void row_dot(const Backend::RowDot& args) {
  CHECK(args.a.shape.rank() == 2, "row_dot: a {} must be a matrix", args.a.shape.text());
  check_shape("row_dot", "b", args.b, args.a.shape);
  const int64_t rows = args.a.shape[0], dim = args.a.shape[1];
  check_shape("row_dot", "y", args.y, {rows});
  const float *a = args.a.as<float>(), *b = args.b.as<float>();
  float* y = args.y.as<float>();
  parallel_for(rows, std::max<int64_t>(1, 16384 / std::max<int64_t>(dim, 1)), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      double sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t d = 0; d < dim; ++d) sum += static_cast<double>(a[i * dim + d]) * b[i * dim + d];
      y[i] = static_cast<float>(sum);
    }
  });
}

void scale_rows(const Backend::ScaleRows& args) {
  CHECK(args.x.shape.rank() == 2, "scale_rows: x {} must be a matrix", args.x.shape.text());
  check_shape("scale_rows", "scale", args.scale, {args.x.shape[0]});
  check_shape("scale_rows", "y", args.y, args.x.shape);
  const int64_t rows = args.x.shape[0], dim = args.x.shape[1];
  const float *x = args.x.as<float>(), *scale = args.scale.as<float>();
  float* __restrict y = args.y.as<float>();
  const bool accumulate = args.write == Write::accumulate;
  parallel_for(rows, std::max<int64_t>(1, 16384 / std::max<int64_t>(dim, 1)), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (accumulate)
        for (int64_t d = 0; d < dim; ++d) y[i * dim + d] += scale[i] * x[i * dim + d];
      else
        for (int64_t d = 0; d < dim; ++d) y[i * dim + d] = scale[i] * x[i * dim + d];
    }
  });
}

void multi_positive(const Backend::MultiPositive& args) {
  const char* op = "multi_positive";
  CHECK(args.positives.shape.rank() == 2, "{}: positives {} must be [P, B]", op, args.positives.shape.text());
  const int count = static_cast<int>(args.positives.shape[0]);
  const int64_t batch = args.positives.shape[1];
  CHECK(count >= 1 && count <= kMost && batch > 0, "{}: {} positives of {} anchors; 1 to {} positives", op, count,
        batch, kMost);
  const bool cosine = args.form == Form::cosine;
  const bool has_negatives = args.negatives && !cosine;
  const int64_t keys = has_negatives ? args.negatives.shape[1] : 0;
  if (has_negatives) check_shape(op, "negatives", args.negatives, {batch, keys});
  check_shape(op, "weights", args.weights, {count});
  check_shape(op, "loss", args.loss, {1});
  CHECK(static_cast<bool>(args.own) == static_cast<bool>(args.ids), "{}: own and ids come together", op);
  if (args.own) check_shape(op, "own", args.own, {batch});
  if (args.ids && has_negatives) check_shape(op, "ids", args.ids, {keys});
  for (int l = 0; l < args.close.count; ++l) check_shape(op, "close", args.close[l], {batch, keys});
  if (args.dpositives) check_shape(op, "dpositives", args.dpositives, args.positives.shape);
  if (args.dnegatives) check_shape(op, "dnegatives", args.dnegatives, {batch, keys});
  if (args.positive_similarity) check_shape(op, "positive_similarity", args.positive_similarity, {count});
  if (args.negative_similarity) check_shape(op, "negative_similarity", args.negative_similarity, {1});
  CHECK(args.temperature > 0, "{}: temperature {} must be positive", op, args.temperature);

  const float* positives = args.positives.as<float>();
  const float* negatives = has_negatives ? args.negatives.as<float>() : nullptr;
  const float* w = args.weights.as<float>();
  const int32_t* own = args.own ? args.own.as<int32_t>() : nullptr;
  const int32_t* ids = args.ids ? args.ids.as<int32_t>() : nullptr;
  float* dpositives = args.dpositives ? args.dpositives.as<float>() : nullptr;
  float* dnegatives = args.dnegatives ? args.dnegatives.as<float>() : nullptr;
  const double inverse = 1.0 / args.temperature;

  struct Row {
    double loss, sum;
    int64_t counted;
  };
  thread_local Scratch scratch;
  Row* rows = scratch.get<Row>(batch);
  parallel_for(batch, std::max<int64_t>(1, 8192 / std::max<int64_t>(keys, 1)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float* x = negatives + i * keys;
      const auto counts = [&](int64_t n) {
        if (own && own[i] == ids[n]) return false;
        for (int l = 0; l < args.close.count; ++l)
          if (args.close[l].as<float>()[i * keys + n] > args.threshold) return false;
        return true;
      };
      rows[i] = {0, 0, 0};
      double most = -kInfinity, sum = 0;
      for (int64_t n = 0; n < keys; ++n) {
        if (!counts(n)) continue;
        most = std::max(most, x[n] * inverse);
        rows[i].sum += x[n];
        ++rows[i].counted;
      }
      for (int64_t n = 0; n < keys; ++n)
        if (counts(n)) sum += std::exp(x[n] * inverse - most);
      const double log_z = rows[i].counted > 0 ? most + std::log(sum) : -kInfinity;

      Anchor a;
      if (cosine) {
        for (int j = 0; j < count; ++j) a.loss += w[j] * (2 - 2.0 * positives[j * batch + i]);
      } else {
        std::array<double, kMost> s{};
        for (int j = 0; j < count; ++j) s[j] = positives[j * batch + i] * inverse;
        a = anchor_loss(args.form, count, w, s, log_z);
      }
      rows[i].loss = a.loss;
      const double scale = 1 / static_cast<double>(batch);
      if (dpositives)
        for (int j = 0; j < count; ++j)
          dpositives[j * batch + i] = static_cast<float>(scale * (cosine ? -2.0 * w[j] : a.pull[j] * inverse));
      if (dnegatives)
        for (int64_t n = 0; n < keys; ++n)
          dnegatives[i * keys + n] =
              counts(n) ? static_cast<float>(scale * inverse * a.push * std::exp(x[n] * inverse - log_z)) : 0.f;
    }
  });

  double loss = 0, sum = 0;
  int64_t counted = 0;
  for (int64_t i = 0; i < batch; ++i) {
    loss += rows[i].loss / static_cast<double>(batch);
    sum += rows[i].sum;
    counted += rows[i].counted;
  }
  *args.loss.as<float>() = static_cast<float>(loss);
  if (args.negative_similarity)
    *args.negative_similarity.as<float>() = static_cast<float>(counted > 0 ? sum / static_cast<double>(counted) : 0);
  if (args.positive_similarity)
    for (int j = 0; j < count; ++j) {
      double mean = 0;
      for (int64_t i = 0; i < batch; ++i) mean += positives[j * batch + i];
      args.positive_similarity.as<float>()[j] = static_cast<float>(mean / static_cast<double>(batch));
    }
}

}  // namespace csml::cpu
