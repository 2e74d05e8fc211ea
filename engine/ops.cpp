#include "engine/ops.h"

namespace csml {

Var conv2d(const Var& x, const Var& w, int stride, int pad) {
  const Shape& xs = x.shape();
  const Shape& ws = w.shape();
  CHECK(xs.rank() == 4 && ws.rank() == 4 && xs[3] == ws[3], "conv2d of x {} with w {}", xs.text(), ws.text());
  const int64_t p = (xs[1] + 2 * pad - ws[1]) / stride + 1, q = (xs[2] + 2 * pad - ws[2]) / stride + 1;
  CHECK(p > 0 && q > 0, "conv2d: image {} is too small for filter {}", xs.text(), ws.text());
  Tensor y(x.value().device(), {xs[0], p, q, ws[0]}, x.value().dtype());
  backend(y).conv2d({.x = x.value(), .w = w.value(), .y = y, .stride = stride, .pad = pad});
  return Var::op("conv2d", y, {x, w},
                 [x = x.value(), w = w.value(), stride, pad](const Tensor& dy, std::span<const Sink> dx) {
                   if (dx[1])
                     backend(dy).conv2d_grad_weight(
                         {.dy = dy, .x = x, .dw = dx[1].tensor, .stride = stride, .pad = pad, .write = dx[1].write});
                   if (dx[0])
                     backend(dy).conv2d_grad_input(
                         {.dy = dy, .w = w, .dx = dx[0].tensor, .stride = stride, .pad = pad, .write = dx[0].write});
                 });
}

Var linear(const Var& x, const Var& w, const Var& b) {
  const Shape& xs = x.shape();
  const Shape& ws = w.shape();
  CHECK(xs.rank() == 2 && ws.rank() == 2 && xs[1] == ws[1], "linear of x {} with w {}", xs.text(), ws.text());
  Tensor y(x.value().device(), {xs[0], ws[0]}, x.value().dtype());
  backend(y).matmul(
      {.a = x.value(), .b = w.value(), .bias = b ? ConstView(b.value()) : ConstView{}, .c = y, .transpose_b = true});
  return Var::op("linear", y, {x, w, b}, [x = x.value(), w = w.value()](const Tensor& dy, std::span<const Sink> dx) {
    if (dx[2]) backend(dy).column_sum({.x = dy, .y = dx[2].tensor, .write = dx[2].write});
    if (dx[1]) backend(dy).matmul({.a = dy, .b = x, .c = dx[1].tensor, .transpose_a = true, .write = dx[1].write});
    if (dx[0]) backend(dy).matmul({.a = dy, .b = w, .c = dx[0].tensor, .write = dx[0].write});
  });
}

Var relu(const Var& x) {
  Tensor y = like(x.value());
  backend(y).relu({.x = x.value(), .y = y});
  return Var::op("relu", y, {x}, [y](const Tensor& dy, std::span<const Sink> dx) {
    if (dx[0]) backend(dy).relu_grad({.dy = dy, .y = y, .dx = dx[0].tensor, .write = dx[0].write});
  });
}

Var add(const Var& a, const Var& b) {
  CHECK(a.shape() == b.shape(), "add of {} and {}", a.shape().text(), b.shape().text());
  Tensor y = like(a.value());
  backend(y).copy({.x = a.value(), .y = y});
  backend(y).axpy({.x = b.value(), .y = y, .write = Write::accumulate});
  return Var::op("add", y, {a, b}, [](const Tensor& dy, std::span<const Sink> dx) {
    for (int i = 0; i < 2; ++i)
      if (dx[i]) backend(dy).axpy({.x = dy, .y = dx[i].tensor, .write = dx[i].write});
  });
}

Var scale(const Var& x, float factor) {
  Tensor y = like(x.value());
  backend(y).axpy({.x = x.value(), .y = y, .alpha = factor});
  return Var::op("scale", y, {x}, [factor](const Tensor& dy, std::span<const Sink> dx) {
    if (dx[0]) backend(dy).axpy({.x = dy, .y = dx[0].tensor, .alpha = factor, .write = dx[0].write});
  });
}

Var reshape(const Var& x, Shape shape) {
  return Var::op("reshape", x.value().reshape(shape), {x}, [](const Tensor& dy, std::span<const Sink> dx) {
    if (dx[0]) backend(dy).axpy({.x = dy.reshape(dx[0].tensor.shape()), .y = dx[0].tensor, .write = dx[0].write});
  });
}

Var max_pool(const Var& x, int window, int stride, int pad) {
  const Shape& s = x.shape();
  CHECK(s.rank() == 4, "max_pool of shape {}", s.text());
  Device& device = x.value().device();
  const Shape out{s[0], (s[1] + 2 * pad - window) / stride + 1, (s[2] + 2 * pad - window) / stride + 1, s[3]};
  Tensor y(device, out, x.value().dtype()), argmax(device, out, DType::u8);
  backend(y).max_pool({.x = x.value(), .y = y, .argmax = argmax, .window = window, .stride = stride, .pad = pad});
  return Var::op("max_pool", y, {x}, [argmax, window, stride, pad](const Tensor& dy, std::span<const Sink> dx) {
    if (dx[0])
      backend(dy).max_pool_grad({.dy = dy,
                                 .argmax = argmax,
                                 .dx = dx[0].tensor,
                                 .window = window,
                                 .stride = stride,
                                 .pad = pad,
                                 .write = dx[0].write});
  });
}

Var global_avg_pool(const Var& x) {
  const Shape& s = x.shape();
  CHECK(s.rank() == 4, "global_avg_pool of shape {}", s.text());
  Tensor y(x.value().device(), {s[0], s[3]}, x.value().dtype());
  backend(y).global_avg_pool({.x = x.value(), .y = y});
  return Var::op("global_avg_pool", y, {x}, [](const Tensor& dy, std::span<const Sink> dx) {
    if (dx[0]) backend(dy).global_avg_pool_grad({.dy = dy, .dx = dx[0].tensor, .write = dx[0].write});
  });
}

Var l2_normalize(const Var& rows) {
  const Var x = cast(rows, DType::f32);
  const Shape& s = x.shape();
  CHECK(s.rank() == 2, "l2_normalize of shape {}", s.text());
  Tensor y = like(x.value()), norm(x.value().device(), {s[0]});
  backend(y).l2_normalize({.x = x.value(), .y = y, .norm = norm});
  return Var::op("l2_normalize", y, {x}, [y, norm](const Tensor& dy, std::span<const Sink> dx) {
    if (dx[0])
      backend(dy).l2_normalize_grad({.dy = dy, .y = y, .norm = norm, .dx = dx[0].tensor, .write = dx[0].write});
  });
}

Var cast(const Var& x, DType dtype) {
  if (x.value().dtype() == dtype) return x;
  Tensor y(x.value().device(), x.shape(), dtype);
  backend(y).axpy({.x = x.value(), .y = y});
  return Var::op("cast", y, {x}, [](const Tensor& dy, std::span<const Sink> dx) {
    if (dx[0]) backend(dy).axpy({.x = dy, .y = dx[0].tensor, .write = dx[0].write});
  });
}

Var batch_norm(const Var& x, const Var& gamma, const Var& beta, const Var& residual, const BatchNormOptions& options) {
  const Shape& s = x.shape();
  Device& device = x.value().device();
  const int64_t channels = s[s.rank() - 1];
  Tensor y = like(x.value()), mean(device, {options.groups, channels}), rstd(device, {options.groups, channels});
  backend(y).batch_norm({.x = x.value(),
                         .gamma = gamma.value(),
                         .beta = beta.value(),
                         .residual = residual ? ConstView(residual.value()) : ConstView{},
                         .y = y,
                         .mean = mean,
                         .rstd = rstd,
                         .batch_mean = options.batch_mean,
                         .batch_var = options.batch_var,
                         .groups = options.groups,
                         .eps = options.eps,
                         .relu = options.relu});
  const bool has_residual = static_cast<bool>(residual);
  return Var::op_of_sum(
      "batch_norm", y, {x, gamma, beta, residual},
      [x = x.value(), gamma = gamma.value(), beta = beta.value(), y, mean, rstd, groups = options.groups,
       relu = options.relu, has_residual](const Tensor& dy, const Tensor& dy2, std::span<const Sink> dx) {
        backend(dy).batch_norm_grad({.dy = dy,
                                     .dy2 = dy2,
                                     .x = x,
                                     .y = y,
                                     .gamma = gamma,
                                     .beta = beta,
                                     .mean = mean,
                                     .rstd = rstd,
                                     .dx = view_of(dx[0]),
                                     .dresidual = view_of(dx[3]),
                                     .dgamma = view_of(dx[1]),
                                     .dbeta = view_of(dx[2]),
                                     .groups = groups,
                                     .relu = relu,
                                     .has_residual = has_residual,
                                     .dx_write = dx[0].write,
                                     .dresidual_write = dx[3].write,
                                     .dgamma_write = dx[1].write,
                                     .dbeta_write = dx[2].write});
      });
}

Var batch_norm_inference(const Var& x, const Var& gamma, const Var& beta, const Tensor& mean, const Tensor& var,
                         const Var& residual, bool relu, float eps) {
  Tensor y = like(x.value());
  backend(y).batch_norm_inference({.x = x.value(),
                                   .gamma = gamma.value(),
                                   .beta = beta.value(),
                                   .mean = mean,
                                   .var = var,
                                   .residual = residual ? ConstView(residual.value()) : ConstView{},
                                   .y = y,
                                   .eps = eps,
                                   .relu = relu});
  return Var(y);
}

Var info_nce(const Var& query, const std::vector<Tensor>& positives, const Tensor& weights, const Tensor& queue,
             float temperature, Similarity* similarity) {
  Device& device = query.value().device();
  const auto rounded = [&](const Tensor& x) { return cast(Var(x), queue.dtype()).value(); };
  const Tensor anchors = rounded(query.value());
  Tensor loss(device, {1}), dquery;
  if (query.requires_grad()) dquery = like(anchors);
  std::vector<Tensor> held;  // until the call
  ConstViews list;
  for (const Tensor& positive : positives) list.push_back(held.emplace_back(rounded(positive)));
  if (similarity && !similarity->positive) {
    similarity->positive = Tensor(device, {static_cast<int64_t>(positives.size())});
    similarity->negative = Tensor(device, {1});
  }
  backend(loss).info_nce({.query = anchors,
                          .positives = list,
                          .weights = weights,
                          .queue = queue,
                          .temperature = temperature,
                          .loss = loss,
                          .dquery = dquery,
                          .positive_similarity = similarity ? View(similarity->positive) : View{},
                          .negative_similarity = similarity ? View(similarity->negative) : View{}});
  return Var::op("info_nce", loss, {query}, [dquery](const Tensor& dy, std::span<const Sink> dx) {
    if (dx[0]) backend(dy).axpy({.x = dquery, .y = dx[0].tensor, .scale = dy, .write = dx[0].write});
  });
}

Var row_dots(const Var& query, const std::vector<Var>& positives) {
  const Shape& s = query.shape();
  CHECK(s.rank() == 2 && !positives.empty(), "row_dots of {} with {} positives", s.text(), positives.size());
  Tensor y(query.value().device(), {static_cast<int64_t>(positives.size()), s[0]});
  std::vector<Var> inputs{query};
  std::vector<Tensor> values;
  for (size_t j = 0; j < positives.size(); ++j) {
    backend(y).row_dot(
        {.a = query.value(), .b = positives[j].value(), .y = y.span(static_cast<int64_t>(j) * s[0], {s[0]})});
    inputs.push_back(positives[j]);
    values.push_back(positives[j].value());
  }
  return Var::op("row_dots", y, inputs, [x = query.value(), values](const Tensor& dy, std::span<const Sink> dx) {
    const int64_t rows = x.shape()[0];
    for (size_t j = 0; j < values.size(); ++j) {
      const Tensor scale = dy.span(static_cast<int64_t>(j) * rows, {rows});
      if (dx[0])
        backend(dy).scale_rows(
            {.x = values[j], .scale = scale, .y = dx[0].tensor, .write = j == 0 ? dx[0].write : Write::accumulate});
      if (dx[j + 1]) backend(dy).scale_rows({.x = x, .scale = scale, .y = dx[j + 1].tensor, .write = dx[j + 1].write});
    }
  });
}

Var multi_positive(const Var& positives, const Var& negatives, const Tensor& weights, const MultiPositiveOptions& o,
                   Similarity* similarity) {
  Device& device = positives.value().device();
  Tensor loss(device, {1}), dpositives, dnegatives;
  if (positives.requires_grad()) dpositives = like(positives.value());
  if (negatives.requires_grad()) dnegatives = like(negatives.value());
  if (similarity && !similarity->positive) {
    similarity->positive = Tensor(device, {positives.shape()[0]});
    similarity->negative = Tensor(device, {1});
  }
  ConstViews close;
  for (const Tensor& t : o.close) close.push_back(t);
  backend(loss).multi_positive({.positives = positives.value(),
                                .negatives = negatives ? ConstView(negatives.value()) : ConstView{},
                                .weights = weights,
                                .own = o.own,
                                .ids = o.ids,
                                .close = close,
                                .threshold = o.threshold,
                                .temperature = o.temperature,
                                .form = o.form,
                                .loss = loss,
                                .dpositives = dpositives,
                                .dnegatives = dnegatives,
                                .positive_similarity = similarity ? View(similarity->positive) : View{},
                                .negative_similarity = similarity ? View(similarity->negative) : View{}});
  return Var::op("multi_positive", loss, {positives, negatives},
                 [dpositives, dnegatives](const Tensor& dy, std::span<const Sink> dx) {
                   const Tensor* gradient[] = {&dpositives, &dnegatives};
                   for (int i = 0; i < 2; ++i)
                     if (dx[i])
                       backend(dy).axpy({.x = *gradient[i], .y = dx[i].tensor, .scale = dy, .write = dx[i].write});
                 });
}

Var concat_rows(const std::vector<Var>& parts) {
  CHECK(!parts.empty(), "concat_rows of nothing");
  if (parts.size() == 1) return parts[0];
  int64_t rows = 0;
  for (const Var& part : parts) rows += part.shape()[0];
  Tensor y(parts[0].value().device(), parts[0].shape().with_rows(rows), parts[0].value().dtype());
  std::vector<int64_t> first{0};
  for (const Var& part : parts) {
    copy(part.value(), y.rows(first.back(), part.shape()[0]));
    first.push_back(first.back() + part.shape()[0]);
  }
  return Var::op("concat_rows", y, parts, [first](const Tensor& dy, std::span<const Sink> dx) {
    for (size_t i = 0; i < dx.size(); ++i)
      if (dx[i])
        backend(dy).axpy({.x = dy.rows(first[i], first[i + 1] - first[i]), .y = dx[i].tensor, .write = dx[i].write});
  });
}

Var gather_window(const Var& x, const Tensor& corner, int64_t rows, int64_t columns) {
  const Shape& s = x.shape();
  CHECK(s.rank() == 4, "gather_window of shape {}", s.text());
  Tensor y(x.value().device(), {s[0], rows, columns, s[3]}, x.value().dtype());
  backend(y).gather_window({.x = x.value(), .corner = corner, .y = y});
  return Var::op("gather_window", y, {x}, [corner](const Tensor& dy, std::span<const Sink> dx) {
    if (dx[0]) backend(dy).gather_window_grad({.dy = dy, .corner = corner, .dx = dx[0].tensor, .write = dx[0].write});
  });
}

Var cross_entropy(const Var& scores, const Tensor& labels, Tensor* correct) {
  const Var logits = cast(scores, DType::f32);
  Device& device = logits.value().device();
  Tensor loss(device, {1}), dlogits;
  if (logits.requires_grad()) dlogits = like(logits.value());
  if (correct && !*correct) *correct = Tensor(device, {1});
  backend(loss).cross_entropy({.logits = logits.value(),
                               .labels = labels,
                               .loss = loss,
                               .dlogits = dlogits,
                               .correct = correct ? View(*correct) : View{}});
  return Var::op("cross_entropy", loss, {logits}, [dlogits](const Tensor& dy, std::span<const Sink> dx) {
    if (dx[0]) backend(dy).axpy({.x = dlogits, .y = dx[0].tensor, .scale = dy, .write = dx[0].write});
  });
}

void fill(const Tensor& y, float value) { backend(y).fill({.y = y, .value = value}); }

void copy(const Tensor& from, const Tensor& to) { backend(to).copy({.x = from, .y = to}); }

void accumulate(const Tensor& x, const Tensor& sum, float factor, const Tensor& scale) {
  backend(sum).axpy({.x = x, .y = sum, .alpha = factor, .scale = scale, .write = Write::accumulate});
}

Tensor gather(const Tensor& x, const Tensor& index) {
  Tensor y(x.device(), x.shape().with_rows(index.size()), x.dtype());
  backend(y).gather({.x = x, .index = index, .y = y});
  return y;
}

Tensor best_window(const Tensor& x, const Tensor& key, int stride) {
  Tensor corner(x.device(), {x.shape()[0], 2}, DType::i32);
  backend(x).best_window({.x = x, .key = key, .corner = corner, .stride = stride});
  return corner;
}

TopKResult top_k(const Tensor& queries, const Tensor& bank, int k, const Tensor& exclude) {
  const Shape shape{queries.shape()[0], k};
  TopKResult result{Tensor(queries.device(), shape), Tensor(queries.device(), shape, DType::i32)};
  backend(queries).top_k(
      {.queries = queries, .bank = bank, .exclude = exclude, .scores = result.scores, .index = result.index, .k = k});
  return result;
}

void augment(const Tensor& images, const Tensor& params, const Tensor& y, const std::array<float, 4>& mean,
             const std::array<float, 4>& std) {
  backend(y).augment({.images = images, .params = params, .y = y, .mean = mean, .std = std});
}

Tensor cut_mix(const Tensor& a, const Tensor& b, const Tensor& box) {
  Tensor y = like(a);
  backend(y).cut_mix({.a = a, .b = b, .box = box, .y = y});
  return y;
}

void all_finite(const Tensor& x, const Tensor& flag, Write write) {
  backend(x).all_finite({.x = x, .flag = flag, .write = write});
}

void ema(const Tensor& x, const Tensor& y, const Tensor& momentum, const Tensor& finite) {
  backend(y).ema({.x = x, .y = y, .momentum = momentum, .finite = finite});
}

void sgd(const Tensor& grad, const Tensor& param, const Tensor& buffer, const Tensor& learning_rate, float momentum,
         float weight_decay, const Tensor& finite) {
  backend(param).sgd({.grad = grad,
                      .param = param,
                      .buffer = buffer,
                      .learning_rate = learning_rate,
                      .finite = finite,
                      .momentum = momentum,
                      .weight_decay = weight_decay});
}

void ring_write(const Tensor& rows, const Tensor& ring, const Tensor& cursor, const Tensor& finite) {
  backend(ring).ring_write({.rows = rows, .queue = ring, .cursor = cursor, .finite = finite});
}

}  // namespace csml
