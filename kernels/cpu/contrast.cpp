#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/onednn.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/scratch.h"

namespace csml::cpu {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// exp(x) for x <= 0 within 2 units in the last place, 0 below -87, NaN for NaN; a loop of it vectorises.
inline float exp_nonpositive(float x) {
  constexpr float kRound = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  const bool tiny = x < -87.f;
  const float bounded = tiny ? -87.f : x;
  const float shifted = bounded * 1.44269504f + kRound;
  const float n = shifted - kRound;
  const float r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
  float p = 1.f / 5040;
  p = p * r + 1.f / 720;
  p = p * r + 1.f / 120;
  p = p * r + 1.f / 24;
  p = p * r + 1.f / 6;
  p = p * r + 0.5f;
  p = p * r * r + r + 1.f;
  const uint32_t exponent = (std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(kRound) + 127u) << 23;
  return tiny ? 0.f : p * std::bit_cast<float>(exponent);
}

double dot(const float* a, const float* b, int64_t n) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

float maximum(const float* x, int64_t n) {
  float most = -kInfinity;
#pragma omp simd reduction(max : most)
  for (int64_t i = 0; i < n; ++i) most = x[i] > most ? x[i] : most;
  return most;
}

/// x[i] = exp(x[i] - shift) in place for shift >= max x; returns the sum.
double exponentials(float* x, int64_t n, float shift) {
  constexpr int64_t kChunk = 256;  // terms added in float
  double total = 0;
  for (int64_t first = 0; first < n; first += kChunk) {
    const int64_t last = std::min(n, first + kChunk);
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = first; i < last; ++i) {
      x[i] = exp_nonpositive(x[i] - shift);
      sum += x[i];
    }
    total += sum;
  }
  return total;
}

/// In double: a mean of similarities near 0 is what their rounding errors are large against.
double plain_sum(const float* x, int64_t n) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += x[i];
  return sum;
}

Shape rows_of(const char* op, const Shape& shape) {
  CHECK(shape.rank() == 2, "{}: {} must be a matrix", op, shape.text());
  return {shape[0]};
}

void check_shape(const char* op, const char* name, const ConstView& x, const Shape& shape) {
  CHECK(x && x.shape == shape, "{}: {} is {}, must be {}", op, name, x.shape.text(), shape.text());
}

/// How the work of info_nce is cut: tiles of query rows times spans of queue rows. Depends on the shapes alone, so the
/// result does not depend on the number of threads.
struct Cut {
  static constexpr int64_t kTile = 256;      // query rows of one task
  static constexpr int64_t kBlock = 512;     // queue rows of one product: its logits stay in the second-level cache
  static constexpr int64_t kTasks = 64;      // enough for many threads, few enough partial gradients
  static constexpr int64_t kMinSpan = 1024;  // queue rows below which a span is not worth its merge

  Cut(int64_t batch, int64_t queue) : batch_(batch), queue_(queue) {
    tiles = (batch + kTile - 1) / kTile;
    spans = std::clamp<int64_t>(kTasks / tiles, 1, std::max<int64_t>(1, queue / kMinSpan));
  }
  int64_t tile(int64_t i) const { return batch_ * i / tiles; }
  int64_t span(int64_t i) const { return queue_ * i / spans; }

  int64_t tiles = 0, spans = 0;

 private:
  int64_t batch_, queue_;
};

/// What one span of the queue gives one query row: sum of exp(logit - maximum), the maximum, the sum of the logits.
struct Partial {
  double sum = 0, logits = 0;
  float maximum = -kInfinity;
};

struct Queue {
  const float* rows;
  int64_t dim;
  float inverse_temperature;
};

/// One task: queries [m, D] against queue rows [first, last). gradient [m, D] = sum_n exp(logit_n - maximum) n, or
/// null.
void stream_queue(const Queue& queue, const float* query, int64_t m, int64_t first, int64_t last, Partial* partial,
                  float* gradient, bool want_logits) {
  thread_local Scratch scratch;
  float* logits = scratch.get<float>(m * Cut::kBlock);
  const int64_t dim = queue.dim, blocks = (last - first + Cut::kBlock - 1) / Cut::kBlock;
  std::fill(partial, partial + m, Partial{});
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t begin = first + (last - first) * block / blocks;
    const int64_t n = first + (last - first) * (block + 1) / blocks - begin;
    const float* rows = queue.rows + begin * dim;
    sgemm(false, true, m, n, dim, queue.inverse_temperature, query, dim, rows, dim, 0.f, logits, n);
    for (int64_t i = 0; i < m; ++i) {
      Partial& p = partial[i];
      float* row = logits + i * n;
      if (want_logits) p.logits += plain_sum(row, n);
      const float most = maximum(row, n);
      if (most > p.maximum) {
        const float rescale = std::exp(p.maximum - most);
        p.sum *= rescale;
        p.maximum = most;
        if (gradient && block > 0)
          for (int64_t d = 0; d < dim; ++d) gradient[i * dim + d] *= rescale;
      }
      p.sum += exponentials(row, n, p.maximum);
    }
    if (gradient) sgemm(false, false, m, dim, n, 1.f, logits, n, rows, dim, block == 0 ? 0.f : 1.f, gradient, dim);
  }
}

}  // namespace

void l2_normalize(const Backend::L2Normalize& args) {
  check_shape("l2_normalize", "norm", args.norm, rows_of("l2_normalize", args.x.shape));
  check_shape("l2_normalize", "y", args.y, args.x.shape);
  const int64_t rows = args.x.shape[0], dim = args.x.shape[1];
  const float* x = args.x.as<float>();
  float *y = args.y.as<float>(), *norm = args.norm.as<float>();
  const float eps = args.eps;
  parallel_for(rows, std::max<int64_t>(1, 16384 / std::max<int64_t>(dim, 1)), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float length = static_cast<float>(std::sqrt(dot(x + i * dim, x + i * dim, dim)));
      norm[i] = length < eps ? eps : length;  // NaN stays NaN
      for (int64_t d = 0; d < dim; ++d) y[i * dim + d] = x[i * dim + d] / norm[i];
    }
  });
}

void l2_normalize_grad(const Backend::L2NormalizeGrad& args) {
  check_shape("l2_normalize_grad", "norm", args.norm, rows_of("l2_normalize_grad", args.y.shape));
  check_shape("l2_normalize_grad", "dy", args.dy, args.y.shape);
  check_shape("l2_normalize_grad", "dx", args.dx, args.y.shape);
  const int64_t rows = args.y.shape[0], dim = args.y.shape[1];
  const float *dy = args.dy.as<float>(), *y = args.y.as<float>(), *norm = args.norm.as<float>();
  float* dx = args.dx.as<float>();
  const bool accumulate = args.write == Write::accumulate;
  parallel_for(rows, std::max<int64_t>(1, 16384 / std::max<int64_t>(dim, 1)), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float *dyi = dy + i * dim, *yi = y + i * dim;
      float* dxi = dx + i * dim;
      const float along = static_cast<float>(dot(dyi, yi, dim)), scale = 1.f / norm[i];
      if (accumulate)
        for (int64_t d = 0; d < dim; ++d) dxi[d] += (dyi[d] - along * yi[d]) * scale;
      else
        for (int64_t d = 0; d < dim; ++d) dxi[d] = (dyi[d] - along * yi[d]) * scale;
    }
  });
}

void info_nce(const Backend::InfoNce& args) {
  rows_of("info_nce", args.query.shape);
  const int64_t batch = args.query.shape[0], dim = args.query.shape[1];
  const int positives = args.positives.count;
  CHECK(batch > 0 && dim > 0 && positives > 0, "info_nce: query {} with {} positives has no loss",
        args.query.shape.text(), positives);
  CHECK(args.queue && args.queue.shape.rank() == 2 && args.queue.shape[0] > 0 && args.queue.shape[1] == dim,
        "info_nce: queue {} does not fit query {}", args.queue.shape.text(), args.query.shape.text());
  for (int j = 0; j < positives; ++j) check_shape("info_nce", "a positive", args.positives[j], args.query.shape);
  check_shape("info_nce", "weights", args.weights, {positives});
  check_shape("info_nce", "loss", args.loss, {1});
  if (args.dquery) check_shape("info_nce", "dquery", args.dquery, args.query.shape);
  if (args.positive_similarity) check_shape("info_nce", "positive_similarity", args.positive_similarity, {positives});
  if (args.negative_similarity) check_shape("info_nce", "negative_similarity", args.negative_similarity, {1});
  CHECK(args.temperature > 0, "info_nce: temperature {} must be positive", args.temperature);

  const int64_t length = args.queue.shape[0];
  const double temperature = args.temperature;
  const float* query = args.query.as<float>();
  const float* weights = args.weights.as<float>();
  float* dquery = args.dquery ? args.dquery.as<float>() : nullptr;
  std::array<const float*, ConstViews::kMax> positive{};
  for (int j = 0; j < positives; ++j) positive[j] = args.positives[j].as<float>();

  // Scratch: per span, a Partial per query row and its unnormalised gradient; then one term per row and output.
  const Cut cut(batch, length);
  const int64_t terms = 1 + positives + 1;  // loss, similarity to each positive, sum of the logits
  thread_local Scratch partial_scratch, gradient_scratch, term_scratch;
  Partial* partials = partial_scratch.get<Partial>(cut.spans * batch);
  float* gradients = dquery ? gradient_scratch.get<float>(cut.spans * batch * dim) : nullptr;
  double* term = term_scratch.get<double>(batch * terms);

  const Queue queue{args.queue.as<float>(), dim, static_cast<float>(1.0 / temperature)};
  const bool want_logits = static_cast<bool>(args.negative_similarity);
  // A team even for one task: each product then runs on one thread and sums in the same order always.
  const int64_t tasks = cut.tiles * cut.spans;
#pragma omp parallel for schedule(static)
  for (int64_t task = 0; task < tasks; ++task) {
    const int64_t tile = task % cut.tiles, span = task / cut.tiles;
    const int64_t row = cut.tile(tile), at = span * batch + row;
    stream_queue(queue, query + row * dim, cut.tile(tile + 1) - row, cut.span(span), cut.span(span + 1), partials + at,
                 gradients ? gradients + at * dim : nullptr, want_logits);
  }

  // With a_j = Z / (exp(s_j) + Z) = 1 - P_j, the loss of a positive is -log(1 - a_j) and its gradient -a_j b_j plus a_j
  // times the mean of the queue under its softmax: no exp(s_j) or Z on its own, so nothing overflows.
  parallel_for(batch, 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      double most = -kInfinity, sum = 0, logits = 0;
      for (int64_t s = 0; s < cut.spans; ++s) most = std::max<double>(most, partials[s * batch + i].maximum);
      for (int64_t s = 0; s < cut.spans; ++s) {
        const Partial& p = partials[s * batch + i];
        sum += p.sum * std::exp(p.maximum - most);
        logits += p.logits;
      }
      const double log_sum = most + std::log(sum);
      const float* q = query + i * dim;
      std::array<double, ConstViews::kMax> pull{};
      double loss = 0, push = 0;
      for (int j = 0; j < positives; ++j) {
        const double similarity = dot(q, positive[j] + i * dim, dim);
        const double gap = log_sum - similarity / temperature;
        loss += weights[j] * (std::max(gap, 0.0) + std::log1p(std::exp(-std::fabs(gap))));
        pull[j] = weights[j] / (1 + std::exp(-gap));
        push += pull[j];
        term[i * terms + 1 + j] = similarity;
      }
      term[i * terms] = loss;
      term[i * terms + terms - 1] = logits;
      if (!dquery) continue;

      const double scale = 1 / (static_cast<double>(batch) * temperature);
      float* __restrict dq = dquery + i * dim;
      std::fill(dq, dq + dim, 0.f);
      for (int64_t s = 0; s < cut.spans; ++s) {
        const int64_t at = s * batch + i;
        const float share = static_cast<float>(scale * push * std::exp(partials[at].maximum - most) / sum);
        for (int64_t d = 0; d < dim; ++d) dq[d] += share * gradients[at * dim + d];
      }
      for (int j = 0; j < positives; ++j) {
        const float* b = positive[j] + i * dim;
        const float share = static_cast<float>(scale * pull[j]);
        for (int64_t d = 0; d < dim; ++d) dq[d] -= share * b[d];
      }
    }
  });

  std::array<double, ConstViews::kMax + 2> mean{};
  for (int64_t i = 0; i < batch; ++i)
    for (int64_t t = 0; t < terms; ++t) mean[t] += term[i * terms + t] / static_cast<double>(batch);
  *args.loss.as<float>() = static_cast<float>(mean[0]);
  if (args.positive_similarity)
    for (int j = 0; j < positives; ++j) args.positive_similarity.as<float>()[j] = static_cast<float>(mean[1 + j]);
  if (args.negative_similarity)
    *args.negative_similarity.as<float>() =
        static_cast<float>(mean[terms - 1] * temperature / static_cast<double>(length));
}

void cross_entropy(const Backend::CrossEntropy& args) {
  check_shape("cross_entropy", "labels", args.labels, rows_of("cross_entropy", args.logits.shape));
  check_shape("cross_entropy", "loss", args.loss, {1});
  if (args.dlogits) check_shape("cross_entropy", "dlogits", args.dlogits, args.logits.shape);
  if (args.correct) check_shape("cross_entropy", "correct", args.correct, {1});
  const int64_t rows = args.logits.shape[0], classes = args.logits.shape[1];
  CHECK(rows > 0, "cross_entropy: no rows, so no mean");
  const float* logits = args.logits.as<float>();
  const int32_t* labels = args.labels.as<int32_t>();
  float* dlogits = args.dlogits ? args.dlogits.as<float>() : nullptr;
  for (int64_t i = 0; i < rows; ++i)
    CHECK(labels[i] >= 0 && labels[i] < classes, "cross_entropy: labels[{}] = {} is outside the {} classes", i,
          labels[i], classes);

  struct Row {
    double loss;
    bool correct;
  };
  thread_local Scratch row_scratch;
  Row* row = row_scratch.get<Row>(rows);
  parallel_for(rows, std::max<int64_t>(1, 8192 / classes), [=](int64_t begin, int64_t end) {
    thread_local Scratch exp_scratch;
    float* spare = exp_scratch.get<float>(classes);
    for (int64_t i = begin; i < end; ++i) {
      const float* x = logits + i * classes;
      float* e = dlogits ? dlogits + i * classes : spare;
      const float most = maximum(x, classes);
      std::copy(x, x + classes, e);
      const double sum = exponentials(e, classes, most);
      const float own = x[labels[i]];
      row[i].loss = std::log(sum) + (static_cast<double>(most) - own);
      row[i].correct = own == most && std::find(x, x + labels[i], most) == x + labels[i];
      if (!dlogits) continue;
      const float scale = static_cast<float>(1 / (sum * static_cast<double>(rows)));
      for (int64_t c = 0; c < classes; ++c) e[c] *= scale;
      e[labels[i]] -= 1.f / static_cast<float>(rows);
    }
  });
  double loss = 0;
  int64_t correct = 0;
  for (int64_t i = 0; i < rows; ++i) {
    loss += row[i].loss / static_cast<double>(rows);
    correct += row[i].correct ? 1 : 0;
  }
  *args.loss.as<float>() = static_cast<float>(loss);
  if (args.correct) *args.correct.as<float>() = static_cast<float>(correct);
}

}  // namespace csml::cpu
