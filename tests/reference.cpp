#include "tests/reference.h"

#include <algorithm>
#include <limits>
#include <numeric>

namespace csml::test::reference {

namespace {

/// f(x index, w index, y index) for every product of a convolution: x [N,H,W,C], w [K,R,S,C], y [N,P,Q,K].
template <class F>
void for_each_product(const Shape& x, const Shape& w, const Shape& y, int stride, int pad, F&& f) {
  for (int64_t n = 0; n < y[0]; ++n)
    for (int64_t p = 0; p < y[1]; ++p)
      for (int64_t q = 0; q < y[2]; ++q)
        for (int64_t k = 0; k < y[3]; ++k)
          for (int64_t r = 0; r < w[1]; ++r)
            for (int64_t s = 0; s < w[2]; ++s) {
              const int64_t h = p * stride + r - pad, v = q * stride + s - pad;
              if (h < 0 || h >= x[1] || v < 0 || v >= x[2]) continue;
              const int64_t xi = ((n * x[1] + h) * x[2] + v) * x[3];
              const int64_t wi = ((k * w[1] + r) * w[2] + s) * x[3];
              const int64_t yi = ((n * y[1] + p) * y[2] + q) * y[3] + k;
              for (int64_t c = 0; c < x[3]; ++c) f(xi + c, wi + c, yi);
            }
}

int64_t last(const Shape& s) { return s[s.rank() - 1]; }

}  // namespace

Array relu(const Array& x) {
  Array y = x;
  for (double& value : y.v) value = std::max(value, 0.0);
  return y;
}

Array relu_grad(const Array& dy, const Array& y) {
  Array dx = dy;
  for (int64_t i = 0; i < dx.size(); ++i)
    if (!(y[i] > 0)) dx[i] = 0;
  return dx;
}

Array column_sum(const Array& x) {
  const int64_t columns = last(x.shape);
  Array y({columns});
  for (int64_t i = 0; i < x.size(); ++i) y[i % columns] += x[i];
  return y;
}

Array gather(const Array& x, const Array& index) {
  Array y(x.shape.with_rows(index.size()), x.dtype);
  const int64_t row = x.shape.row_size();
  for (int64_t i = 0; i < y.size(); ++i) y[i] = x[static_cast<int64_t>(index[i / row]) * row + i % row];
  return y;
}

Array add(const Array& a, const Array& b) {
  Array y = a;
  for (int64_t i = 0; i < y.size(); ++i) y[i] += b[i];
  return y;
}

double dot(const Array& a, const Array& b) { return std::inner_product(a.v.begin(), a.v.end(), b.v.begin(), 0.0); }

Array conv2d(const Array& x, const Array& w, int stride, int pad) {
  Array y({x.shape[0], (x.shape[1] + 2 * pad - w.shape[1]) / stride + 1,
           (x.shape[2] + 2 * pad - w.shape[2]) / stride + 1, w.shape[0]});
  for_each_product(x.shape, w.shape, y.shape, stride, pad,
                   [&](int64_t xi, int64_t wi, int64_t yi) { y[yi] += x[xi] * w[wi]; });
  return y;
}

Array conv2d_grad_input(const Array& dy, const Array& w, Shape x, int stride, int pad) {
  Array dx(x);
  for_each_product(x, w.shape, dy.shape, stride, pad,
                   [&](int64_t xi, int64_t wi, int64_t yi) { dx[xi] += dy[yi] * w[wi]; });
  return dx;
}

Array conv2d_grad_weight(const Array& dy, const Array& x, Shape w, int stride, int pad) {
  Array dw(w);
  for_each_product(x.shape, w, dy.shape, stride, pad,
                   [&](int64_t xi, int64_t wi, int64_t yi) { dw[wi] += dy[yi] * x[xi]; });
  return dw;
}

Array matmul(const Array& a, const Array& b, const Array& bias, bool transpose_a, bool transpose_b) {
  const int64_t m = a.shape[transpose_a ? 1 : 0], n = b.shape[transpose_b ? 0 : 1], k = a.shape[transpose_a ? 0 : 1];
  Array c({m, n});
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      double sum = bias.size() ? bias[j] : 0;
      for (int64_t l = 0; l < k; ++l)
        sum += a[transpose_a ? l * m + i : i * k + l] * b[transpose_b ? j * k + l : l * n + j];
      c[i * n + j] = sum;
    }
  return c;
}

MaxPool max_pool(const Array& x, int window, int stride, int pad) {
  const Shape& s = x.shape;
  const Shape shape{s[0], (s[1] + 2 * pad - window) / stride + 1, (s[2] + 2 * pad - window) / stride + 1, s[3]};
  MaxPool out{Array(shape), Array(shape, DType::u8)};
  for (int64_t i = 0; i < out.y.size(); ++i) {
    const int64_t c = i % s[3], q = i / s[3] % shape[2], p = i / s[3] / shape[2] % shape[1], n = i / shape.row_size();
    bool first = true;
    for (int r = 0; r < window; ++r)
      for (int t = 0; t < window; ++t) {
        const int64_t h = p * stride + r - pad, w = q * stride + t - pad;
        if (h < 0 || h >= s[1] || w < 0 || w >= s[2]) continue;
        const double value = x[((n * s[1] + h) * s[2] + w) * s[3] + c];
        if (!first && value <= out.y[i]) continue;
        out.y[i] = value;
        out.argmax[i] = r * window + t;
        first = false;
      }
  }
  return out;
}

Array max_pool_grad(const Array& dy, const Array& argmax, Shape x, int window, int stride, int pad) {
  Array dx(x);
  const Shape& s = dy.shape;
  for (int64_t i = 0; i < dy.size(); ++i) {
    const int64_t c = i % s[3], q = i / s[3] % s[2], p = i / s[3] / s[2] % s[1], n = i / s.row_size();
    const int64_t at = static_cast<int64_t>(argmax[i]);
    const int64_t h = p * stride + at / window - pad, w = q * stride + at % window - pad;
    dx[((n * x[1] + h) * x[2] + w) * x[3] + c] += dy[i];
  }
  return dx;
}

Array global_avg_pool(const Array& x) {
  const int64_t pixels = x.shape[1] * x.shape[2], channels = x.shape[3];
  Array y({x.shape[0], channels});
  for (int64_t i = 0; i < x.size(); ++i)
    y[i / (pixels * channels) * channels + i % channels] += x[i] / static_cast<double>(pixels);
  return y;
}

Array global_avg_pool_grad(const Array& dy, Shape x) {
  const int64_t pixels = x[1] * x[2], channels = x[3];
  Array dx(x);
  for (int64_t i = 0; i < dx.size(); ++i)
    dx[i] = dy[i / (pixels * channels) * channels + i % channels] / static_cast<double>(pixels);
  return dx;
}

BatchNorm batch_norm(const Array& x, const Array& gamma, const Array& beta, const Array& residual, int groups,
                     double eps, bool relu) {
  const int64_t channels = last(x.shape), part = x.size() / groups, rows = part / channels;
  BatchNorm out{Array(x.shape), Array({groups, channels}), Array({groups, channels}), Array({channels}),
                Array({channels})};
  for (int64_t g = 0; g < groups; ++g)
    for (int64_t c = 0; c < channels; ++c) {
      double mean = 0, var = 0;
      for (int64_t i = 0; i < rows; ++i) mean += x[g * part + i * channels + c] / static_cast<double>(rows);
      for (int64_t i = 0; i < rows; ++i) {
        const double d = x[g * part + i * channels + c] - mean;
        var += d * d / static_cast<double>(rows);
      }
      const double rstd = 1 / std::sqrt(var + eps);
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t at = g * part + i * channels + c;
        const double y = gamma[c] * (x[at] - mean) * rstd + beta[c] + (residual.size() ? residual[at] : 0);
        out.y[at] = relu ? std::max(y, 0.0) : y;
      }
      out.mean[g * channels + c] = mean;
      out.rstd[g * channels + c] = rstd;
      out.batch_mean[c] += mean / groups;
      out.batch_var[c] += var * static_cast<double>(rows) / static_cast<double>(rows - 1) / groups;
    }
  return out;
}

BatchNormGrad batch_norm_grad(const Array& dy, const Array& dy2, const Array& x, const Array& y, const Array& gamma,
                              const Array& mean, const Array& rstd, int groups, bool relu) {
  const int64_t channels = last(x.shape), part = x.size() / groups, rows = part / channels;
  Array d = dy2.size() ? add(dy, dy2) : dy;
  if (relu) d = relu_grad(d, y);
  BatchNormGrad out{Array(x.shape), d, Array({channels}), Array({channels})};
  for (int64_t g = 0; g < groups; ++g)
    for (int64_t c = 0; c < channels; ++c) {
      const double m = mean[g * channels + c], r = rstd[g * channels + c];
      double sum = 0, sum_xhat = 0;
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t at = g * part + i * channels + c;
        sum += d[at];
        sum_xhat += d[at] * (x[at] - m) * r;
      }
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t at = g * part + i * channels + c;
        const double n = static_cast<double>(rows);
        out.dx[at] = gamma[c] * r * (d[at] - sum / n - (x[at] - m) * r * sum_xhat / n);
      }
      out.dbeta[c] += sum;
      out.dgamma[c] += sum_xhat;
    }
  return out;
}

Array batch_norm_inference(const Array& x, const Array& gamma, const Array& beta, const Array& mean, const Array& var,
                           const Array& residual, double eps, bool relu) {
  const int64_t channels = last(x.shape);
  Array y(x.shape);
  for (int64_t i = 0; i < x.size(); ++i) {
    const int64_t c = i % channels;
    y[i] = gamma[c] * (x[i] - mean[c]) / std::sqrt(var[c] + eps) + beta[c] + (residual.size() ? residual[i] : 0);
    if (relu) y[i] = std::max(y[i], 0.0);
  }
  return y;
}

L2Normalize l2_normalize(const Array& x, double eps) {
  const int64_t rows = x.shape[0], columns = x.shape[1];
  L2Normalize out{Array(x.shape), Array({rows})};
  for (int64_t i = 0; i < rows; ++i) {
    double sum = 0;
    for (int64_t j = 0; j < columns; ++j) sum += x[i * columns + j] * x[i * columns + j];
    out.norm[i] = std::max(std::sqrt(sum), eps);
    for (int64_t j = 0; j < columns; ++j) out.y[i * columns + j] = x[i * columns + j] / out.norm[i];
  }
  return out;
}

Array l2_normalize_grad(const Array& dy, const Array& y, const Array& norm) {
  const int64_t rows = y.shape[0], columns = y.shape[1];
  Array dx(y.shape);
  for (int64_t i = 0; i < rows; ++i) {
    double projection = 0;
    for (int64_t j = 0; j < columns; ++j) projection += dy[i * columns + j] * y[i * columns + j];
    for (int64_t j = 0; j < columns; ++j)
      dx[i * columns + j] = (dy[i * columns + j] - projection * y[i * columns + j]) / norm[i];
  }
  return dx;
}

InfoNce info_nce(const Array& query, const std::vector<Array>& positives, const Array& weights, const Array& queue,
                 double temperature) {
  const int64_t batch = query.shape[0], d = query.shape[1], keys = queue.shape[0];
  const auto product = [&](int64_t i, const Array& rows, int64_t j) {
    double sum = 0;
    for (int64_t c = 0; c < d; ++c) sum += query[i * d + c] * rows[j * d + c];
    return sum;
  };
  InfoNce out{0, Array(query.shape), Array({static_cast<int64_t>(positives.size())}), 0};
  for (int64_t i = 0; i < batch; ++i) {
    std::vector<double> negative(static_cast<size_t>(keys));
    for (int64_t n = 0; n < keys; ++n) {
      negative[static_cast<size_t>(n)] = product(i, queue, n) / temperature;
      out.negative_similarity += product(i, queue, n) / static_cast<double>(batch * keys);
    }
    for (size_t j = 0; j < positives.size(); ++j) {
      const double similarity = product(i, positives[j], i), s = similarity / temperature;
      const double scale = weights[static_cast<int64_t>(j)] / static_cast<double>(batch);
      out.positive_similarity[static_cast<int64_t>(j)] += similarity / static_cast<double>(batch);
      double top = s, sum = 0;
      for (double t : negative) top = std::max(top, t);
      for (double t : negative) sum += std::exp(t - top);
      sum += std::exp(s - top);
      out.loss += scale * (top + std::log(sum) - s);
      for (int64_t c = 0; c < d; ++c) {  // the softmax of the K+1 keys, minus one at the positive
        double mean_key = std::exp(s - top) / sum * positives[j][i * d + c];
        for (int64_t n = 0; n < keys; ++n)
          mean_key += std::exp(negative[static_cast<size_t>(n)] - top) / sum * queue[n * d + c];
        out.dquery[i * d + c] += scale / temperature * (mean_key - positives[j][i * d + c]);
      }
    }
  }
  return out;
}

CrossEntropy cross_entropy(const Array& logits, const Array& labels) {
  const int64_t rows = logits.shape[0], classes = logits.shape[1];
  CrossEntropy out{0, Array(logits.shape), 0};
  for (int64_t i = 0; i < rows; ++i) {
    const auto row = logits.v.begin() + i * classes;
    const int64_t label = static_cast<int64_t>(labels[i]);
    const auto top = std::max_element(row, row + classes);  // the first of equals
    out.correct += top - row == label;
    double sum = 0;
    for (int64_t c = 0; c < classes; ++c) sum += std::exp(row[c] - *top);
    out.loss += (*top + std::log(sum) - row[label]) / static_cast<double>(rows);
    for (int64_t c = 0; c < classes; ++c)
      out.dlogits[i * classes + c] = (std::exp(row[c] - *top) / sum - (c == label)) / static_cast<double>(rows);
  }
  return out;
}

TopK top_k(const Array& queries, const Array& bank, const Array& exclude, int k) {
  const int64_t rows = queries.shape[0], n = bank.shape[0], d = queries.shape[1];
  TopK out{Array({rows, k}), Array({rows, k}, DType::i32)};
  for (int64_t i = 0; i < rows; ++i) {
    std::vector<std::pair<double, int64_t>> found;
    for (int64_t j = 0; j < n; ++j) {
      if (exclude.size() && static_cast<int64_t>(exclude[i]) == j) continue;
      double sum = 0;
      for (int64_t c = 0; c < d; ++c) sum += queries[i * d + c] * bank[j * d + c];
      found.emplace_back(-sum, j);
    }
    std::sort(found.begin(), found.end());
    found.resize(static_cast<size_t>(k), {std::numeric_limits<double>::infinity(), -1});  // missing ones, last
    for (int64_t j = 0; j < k; ++j) {
      out.scores[i * k + j] = -found[static_cast<size_t>(j)].first;
      out.index[i * k + j] = static_cast<double>(found[static_cast<size_t>(j)].second);
    }
  }
  return out;
}

void sgd(const Array& grad, Array& param, Array& buffer, double lr, double momentum, double weight_decay) {
  for (int64_t i = 0; i < param.size(); ++i) {
    buffer[i] = momentum * buffer[i] + grad[i] + weight_decay * param[i];
    param[i] -= lr * buffer[i];
  }
}

void lars(const Array& grad, Array& param, Array& buffer, const Array& offsets, const Array& adapt, double lr,
          double momentum, double weight_decay, double trust) {
  for (int64_t s = 0; s < adapt.size(); ++s) {
    const int64_t first = static_cast<int64_t>(offsets[s]), end = static_cast<int64_t>(offsets[s + 1]);
    const bool adapts = adapt[s] != 0;
    double norm_param = 0, norm_d = 0;
    for (int64_t i = first; i < end; ++i) {
      const double d = grad[i] + (adapts ? weight_decay * param[i] : 0);
      norm_param += param[i] * param[i];
      norm_d += d * d;
    }
    const bool scales = adapts && norm_param > 0 && norm_d > 0;
    const double factor = scales ? trust * std::sqrt(norm_param) / std::sqrt(norm_d) : 1;
    for (int64_t i = first; i < end; ++i) {
      buffer[i] = momentum * buffer[i] + factor * (grad[i] + (adapts ? weight_decay * param[i] : 0));
      param[i] -= lr * buffer[i];
    }
  }
}

void adamw(const Array& grad, Array& param, Array& first, Array& second, Array& step, double lr, double beta1,
           double beta2, double eps, double weight_decay) {
  const double t = ++step[0];
  for (int64_t i = 0; i < param.size(); ++i) {
    first[i] = beta1 * first[i] + (1 - beta1) * grad[i];
    second[i] = beta2 * second[i] + (1 - beta2) * grad[i] * grad[i];
    const double m = first[i] / (1 - std::pow(beta1, t)), v = second[i] / (1 - std::pow(beta2, t));
    param[i] = param[i] * (1 - lr * weight_decay) - lr * m / (std::sqrt(v) + eps);
  }
}

void ema(const Array& x, Array& y, double momentum) {
  for (int64_t i = 0; i < y.size(); ++i) y[i] = momentum * y[i] + (1 - momentum) * x[i];
}

void ring_write(const Array& rows, Array& queue, Array& cursor) {
  const int64_t d = queue.shape[1], keys = queue.shape[0];
  for (int64_t i = 0; i < rows.shape[0]; ++i) {
    const int64_t at = (static_cast<int64_t>(cursor[0]) + i) % keys;
    for (int64_t c = 0; c < d; ++c) queue[at * d + c] = rows[i * d + c];
  }
  cursor[0] = static_cast<double>((static_cast<int64_t>(cursor[0]) + rows.shape[0]) % keys);
}

Array cut_mix(const Array& a, const Array& b, const Array& box) {
  Array y = a;
  const Shape& s = a.shape;
  for (int64_t i = 0; i < y.size(); ++i) {
    const double w = static_cast<double>(i / s[3] % s[2]), h = static_cast<double>(i / s[3] / s[2] % s[1]);
    if (h >= box[0] && h < box[2] && w >= box[1] && w < box[3]) y[i] = b[i];
  }
  return y;
}

}  // namespace csml::test::reference
