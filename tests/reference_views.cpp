// References of what the views of a multi-level, multi-positive loss need.
#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/reference.h"

namespace csml::test::reference {

Array row_dot(const Array& a, const Array& b) {
  Array y({a.shape[0]});
  const int64_t dim = a.shape[1];
  for (int64_t i = 0; i < a.size(); ++i) y[i / dim] += a[i] * b[i];
  return y;
}

Array scale_rows(const Array& x, const Array& scale) {
  Array y = x;
  const int64_t dim = x.shape[1];
  for (int64_t i = 0; i < y.size(); ++i) y[i] *= scale[i / dim];
  return y;
}

MultiPositive multi_positive(const Array& positives, const Array& negatives, const Array& weights, const Array& own,
                             const Array& ids, const std::vector<Array>& close, double threshold, double temperature,
                             Backend::Form form) {
  using Form = Backend::Form;
  const int64_t count = positives.shape[0], batch = positives.shape[1];
  const int64_t keys = negatives.size() > 0 ? negatives.shape[1] : 0;
  MultiPositive out{.loss = 0,
                    .dpositives = Array(positives.shape),
                    .dnegatives = Array({batch, keys}),
                    .positive_similarity = Array({count}),
                    .negative_similarity = 0};
  double total = 0, most = 0, counted = 0;
  for (int64_t j = 0; j < count; ++j) {
    total += weights[j];
    most = std::max(most, weights[j]);
  }
  const double share = 1 / static_cast<double>(batch);
  for (int64_t i = 0; i < batch; ++i) {
    std::vector<double> e(static_cast<size_t>(count)), n(static_cast<size_t>(keys), 0.0);
    double z = 0, sum_u = 0;
    for (int64_t j = 0; j < count; ++j) {
      const double x = positives[j * batch + i];
      out.positive_similarity[j] += x * share;
      e[static_cast<size_t>(j)] = std::exp(x / temperature);
      if (total > 0) sum_u += weights[j] / most * e[static_cast<size_t>(j)];
    }
    for (int64_t k = 0; k < keys; ++k) {
      bool counts = own.size() == 0 || own[i] != ids[k];
      for (const Array& c : close) counts = counts && !(c[i * keys + k] > threshold);
      if (!counts) continue;
      n[static_cast<size_t>(k)] = std::exp(negatives[i * keys + k] / temperature);
      z += n[static_cast<size_t>(k)];
      out.negative_similarity += negatives[i * keys + k];
      ++counted;
    }
    double push = 0;  // d loss / d Z
    for (int64_t j = 0; j < count; ++j) {
      const double w = weights[j], s = positives[j * batch + i] / temperature, ej = e[static_cast<size_t>(j)];
      double& d = out.dpositives[j * batch + i];
      if (form == Form::cosine) {
        out.loss += share * w * (2 - 2 * positives[j * batch + i]);
        d = -2 * share * w;
      } else if (total == 0) {
        d = 0;
      } else if (form == Form::csml) {
        out.loss += share * w * (std::log(ej + z) - s);
        d = share / temperature * w * (ej / (ej + z) - 1);
        push += w / (ej + z);
      } else {
        if (form == Form::out) out.loss += share * w * (std::log(sum_u + z) - s);
        const double own_share = total * w / most * ej;
        d = share / temperature * (own_share / (sum_u + z) - (form == Form::out ? w : own_share / sum_u));
      }
    }
    if (total > 0 && (form == Form::out || form == Form::in || form == Form::mil)) push = total / (sum_u + z);
    if (total > 0 && form == Form::in)
      out.loss += share * total * (std::log(sum_u + z) - std::log(sum_u * most / total));
    if (total > 0 && form == Form::mil) out.loss += share * total * (std::log(sum_u + z) - std::log(sum_u));
    for (int64_t k = 0; k < keys; ++k)
      out.dnegatives[i * keys + k] = share / temperature * push * n[static_cast<size_t>(k)];
  }
  if (counted > 0) out.negative_similarity /= counted;
  return out;
}

Array gather_window(const Array& x, const Array& corner, int64_t rows, int64_t columns) {
  const Shape& s = x.shape;
  Array y({s[0], rows, columns, s[3]});
  int64_t i = 0;
  for (int64_t n = 0; n < s[0]; ++n)
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t q = 0; q < columns; ++q)
        for (int64_t c = 0; c < s[3]; ++c, ++i) {
          const auto h = static_cast<int64_t>(corner[2 * n]) + r, w = static_cast<int64_t>(corner[2 * n + 1]) + q;
          y[i] = x[((n * s[1] + h) * s[2] + w) * s[3] + c];
        }
  return y;
}

Array gather_window_grad(const Array& dy, const Array& corner, Shape x) {
  Array dx(x);
  int64_t i = 0;
  for (int64_t n = 0; n < x[0]; ++n)
    for (int64_t r = 0; r < dy.shape[1]; ++r)
      for (int64_t q = 0; q < dy.shape[2]; ++q)
        for (int64_t c = 0; c < x[3]; ++c, ++i) {
          const auto h = static_cast<int64_t>(corner[2 * n]) + r, w = static_cast<int64_t>(corner[2 * n + 1]) + q;
          dx[((n * x[1] + h) * x[2] + w) * x[3] + c] += dy[i];
        }
  return dx;
}

Array best_window(const Array& x, const Array& key, int stride) {
  const Shape &s = x.shape, &k = key.shape;
  Array corner({s[0], 2}, DType::i32);
  std::vector<int64_t> rows, columns;
  for (int64_t y = 0; y < s[1] - k[1]; y += stride) rows.push_back(y);
  rows.push_back(s[1] - k[1]);
  for (int64_t y = 0; y < s[2] - k[2]; y += stride) columns.push_back(y);
  columns.push_back(s[2] - k[2]);
  for (int64_t n = 0; n < s[0]; ++n) {
    double best = -std::numeric_limits<double>::infinity();
    for (const int64_t top : rows)
      for (const int64_t left : columns) {
        double score = 0;
        for (int64_t r = 0; r < k[1]; ++r)
          for (int64_t q = 0; q < k[2]; ++q) {
            double xy = 0, xx = 0, yy = 0;
            for (int64_t c = 0; c < s[3]; ++c) {
              const double a = x[((n * s[1] + top + r) * s[2] + left + q) * s[3] + c];
              const double b = key[((n * k[1] + r) * k[2] + q) * s[3] + c];
              xy += a * b;
              xx += a * a;
              yy += b * b;
            }
            if (xx > 0 && yy > 0) score += xy / std::sqrt(xx * yy);
          }
        if (score > best)
          best = score, corner[2 * n] = static_cast<double>(top), corner[2 * n + 1] = static_cast<double>(left);
      }
  }
  return corner;
}

}  // namespace csml::test::reference
