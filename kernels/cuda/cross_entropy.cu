// Cross entropy, a warp to a row. logits and dlogits are f32, bf16 or f16 (one type in a call); loss and correct are
// f32.
#include "kernels/cuda/launch.cuh"

namespace csml::cuda {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// A warp to a row; terms[i] = its loss, terms[rows + i] = whether it is correct. Bytes: reads logits up to three
/// times, from the caches after the first, writes dlogits; the floor is logits + dlogits.
template <class T>
KERNEL void cross_entropy_kernel(const T* logits, const int32_t* labels, T* dlogits, float* terms, int64_t rows,
                                 int64_t classes, Failure* failure) {
  for (int64_t i = grid_thread() / kWarp; i < rows; i += grid_threads() / kWarp) {
    const T* x = logits + i * classes;
    const int32_t label = labels[i];
    if (label < 0 || label >= classes) {
      if (lane() == 0) report(failure, Failure::label_range, i, label, classes);
      continue;
    }
    float most = -kInfinity;
    int64_t first = classes;  // of the maxima
    bool nan = false;
    for (int64_t c = lane(); c < classes; c += kWarp) {
      const float v = x[c];
      nan = nan || v != v;
      if (v > most) most = v, first = c;
    }
    const float own_most = most;
    most = warp_max(most);
    if (own_most != most) first = classes;
    first = -warp_max(-first);
    nan = warp_any(nan);
    float sum = 0;
    for (int64_t c = lane(); c < classes; c += kWarp) sum += std::exp(float(x[c]) - most);
    sum = warp_sum(sum);
    if (lane() == 0) {
      terms[i] = std::log(sum) + (most - float(x[label]));
      terms[rows + i] = !nan && first == label ? 1.f : 0.f;
    }
    if (!dlogits) continue;
    const float scale = 1.f / (sum * static_cast<float>(rows)), one = 1.f / static_cast<float>(rows);
    for (int64_t c = lane(); c < classes; c += kWarp)
      dlogits[i * classes + c] = T(std::exp(float(x[c]) - most) * scale - (c == label ? one : 0.f));
  }
}

/// loss = mean of terms[0, rows), correct = sum of terms[rows, 2 rows). One block.
KERNEL void cross_entropy_total_kernel(const float* terms, float* loss, float* correct, int64_t rows) {
  double total = 0, right = 0;
  for (int64_t i = thread(); i < rows; i += block_threads()) {
    total += terms[i];
    right += terms[rows + i];
  }
  total = block_sum(total);
  right = block_sum(right);
  if (thread() != 0) return;
  *loss = static_cast<float>(total / static_cast<double>(rows));
  if (correct) *correct = static_cast<float>(right);
}

Shape rows_of(const char* op, const Shape& shape) {
  CHECK(shape.rank() == 2, "{}: {} must be a matrix", op, shape.text());
  return {shape[0]};
}

void check_shape(const char* op, const char* name, const ConstView& x, const Shape& shape) {
  CHECK(x && x.shape == shape, "{}: {} is {}, must be {}", op, name, x.shape.text(), shape.text());
}

}  // namespace

void cross_entropy(Context& context, const Backend::CrossEntropy& args) {
  check_shape("cross_entropy", "labels", args.labels, rows_of("cross_entropy", args.logits.shape));
  check_shape("cross_entropy", "loss", args.loss, {1});
  if (args.dlogits) check_shape("cross_entropy", "dlogits", args.dlogits, args.logits.shape);
  if (args.correct) check_shape("cross_entropy", "correct", args.correct, {1});
  const int64_t rows = args.logits.shape[0], classes = args.logits.shape[1];
  CHECK(rows > 0, "cross_entropy: no rows, so no mean");
  float* terms = context.scratch<float>(2 * rows);
  with_float_type(args.logits.dtype, [&]<class T>(T) {
    launch(context, {.name = "cross_entropy", .grid = grid_for(context, rows * kWarp)}, cross_entropy_kernel<T>,
           args.logits.as<T>(), args.labels.as<int32_t>(), args.dlogits ? args.dlogits.as<T>() : nullptr, terms, rows,
           classes, context.failure());
  });
  launch(context, {.name = "cross_entropy total"}, cross_entropy_total_kernel, terms, args.loss.as<float>(),
         args.correct ? args.correct.as<float>() : nullptr, rows);
}

}  // namespace csml::cuda
