// Synchronised batch norm: processes that hold parts of a group compute what one process computes of all of it, forward
// and backward, recorded too; spans of some of the processes. Run as it is (one process) and under mpirun.
#include "engine/sync_batch_norm.h"
#include "engine/step.h"

#include "tests/files.h"
#include "tests/reference.h"

using namespace csml;
using test::Array;

namespace {

/// One per process, as MPI is.
struct Job {
  std::unique_ptr<Device> device = Device::open("cpu");
  std::unique_ptr<Comm> comm = Comm::open(*device, {.timeout_seconds = 30, .rendezvous = {}});
};
Job& job() {
  static Job instance;
  return instance;
}

constexpr int64_t kRows = 3, kChannels = 5;
constexpr float kEps = 1e-5f;

/// Values of all processes together, [size * kRows, 2, 2, C]; this one holds kRows of them.
Array everybody(uint32_t stream, double offset = 0) {
  Array a({job().comm->size() * kRows, 2, 2, kChannels});
  Random random(3, Purpose::test, 0, 0, stream);
  for (double& x : a.v) x = static_cast<float>(offset + random.normal());
  return a;
}

std::vector<float> floats(const Array& a, int64_t first, int64_t count) {
  return {a.v.begin() + first, a.v.begin() + first + count};
}

/// Rows [rank * kRows, …) of a span's or of all processes' array.
std::vector<float> mine(const Array& a, int first_rank = 0) {
  const int64_t each = kRows * 4 * kChannels;
  return floats(a, (job().comm->rank() - first_rank) * each, each);
}

Array rows_of(const Array& a, const RankSpan& span) {
  const int64_t each = kRows * 4 * kChannels;
  Array part({span.count * kRows, 2, 2, kChannels});
  for (int64_t i = 0; i < part.size(); ++i) part[i] = a[span.first * each + i];
  return part;
}

double worst(const Tensor& got, const std::vector<float>& want) {
  const std::vector<float> values = got.host<float>();
  double difference = 0, largest = 1e-30;
  for (size_t i = 0; i < want.size(); ++i) {
    difference = std::max(difference, std::abs(static_cast<double>(values[i]) - want[i]));
    largest = std::max(largest, std::abs(static_cast<double>(want[i])));
  }
  return difference / largest;
}

/// Differences are f32 rounding of sums of a few dozen values; a part left out is off by a tenth or more.
constexpr double kClose = 2e-6;

void check_span(const RankSpan& span, double offset, bool relu, bool with_residual, bool wants_residual) {
  Device& device = *job().device;
  Comm& comm = *job().comm;
  const Array x = everybody(1, offset), residual = everybody(2), dy = everybody(3), gamma_all = everybody(4),
              beta_all = everybody(5);
  Array gamma({kChannels}), beta({kChannels});
  for (int64_t c = 0; c < kChannels; ++c) gamma[c] = 1 + 0.3 * gamma_all[c], beta[c] = beta_all[c];
  const Array no;
  const auto group = [&](const Array& a) { return rows_of(a, span); };
  const test::reference::BatchNorm want =
      test::reference::batch_norm(group(x), gamma, beta, with_residual ? group(residual) : no, 1, kEps, relu);
  const test::reference::BatchNormGrad want_grad =
      test::reference::batch_norm_grad(group(dy), no, group(x), want.y, gamma, want.mean, want.rstd, 1, relu);

  const Shape shape{kRows, 2, 2, kChannels};
  const auto leaf = [&](const std::vector<float>& values, const Shape& s) {
    return Var::leaf(Tensor::from(device, s, values), Tensor::full(device, s, 9.f));
  };
  const Var lx = leaf(mine(x), shape), lg = leaf(floats(gamma, 0, kChannels), {kChannels}),
            lb = leaf(floats(beta, 0, kChannels), {kChannels});
  const Var lr = !with_residual   ? Var()
                 : wants_residual ? leaf(mine(residual), shape)
                                  : Var(Tensor::from(device, shape, mine(residual)));
  const Tensor upstream = Tensor::from(device, shape, mine(dy)), y(device, shape), batch_mean(device, {kChannels}),
               batch_var(device, {kChannels});
  const auto pass = [&] {
    for (const Var& v : {lx, lg, lb, lr}) v.mark_unwritten();
    const Var out = sync_batch_norm(
        lx, lg, lb, lr, {.groups = 1, .relu = relu, .eps = kEps, .batch_mean = batch_mean, .batch_var = batch_var},
        span);
    copy(out.value(), y);
    // sum y * dy: its gradient with respect to y is dy
    const int64_t n = shape.size();
    const Var flat = reshape(out, {1, n});
    const Var dot = linear(flat, Var(upstream.reshape({1, n})), {});
    comm.fork();  // as in a step, whose bucket reductions are under way meanwhile
    reshape(dot, {1}).backward();
    comm.join();
  };
  Step step(device, pass);
  for (int run = 0; run < 4; ++run) {  // eager twice, recorded, replayed
    for (const Tensor& t : {y, lx.grad(), lg.grad(), lb.grad(), batch_mean, batch_var}) fill(t, 9);
    step.run();
    CHECK(worst(y, mine(want.y, span.first)) < kClose * (1 + offset));
    CHECK(worst(batch_mean, floats(want.batch_mean, 0, kChannels)) < kClose);
    CHECK(worst(batch_var, floats(want.batch_var, 0, kChannels)) < kClose);
    CHECK(worst(lx.grad(), mine(want_grad.dx, span.first)) < 10 * kClose * (1 + offset));
    if (wants_residual) CHECK(worst(lr.grad(), mine(want_grad.dresidual, span.first)) < kClose);
    // The parameters' gradients are sums over processes.
    const auto share = [&](const Tensor& grad, const Array& all) {
      const Tensor parts(device, {comm.size(), kChannels}), total(device, {kChannels});
      comm.all_gather(grad.reshape({1, kChannels}), parts);
      fill(total, 0);
      for (int r = span.first; r < span.first + span.count; ++r)
        accumulate(parts.rows(r, 1).reshape({kChannels}), total);
      return worst(total, floats(all, 0, kChannels));
    };
    CHECK(share(lg.grad(), want_grad.dgamma) < 10 * kClose * (1 + offset));
    CHECK(share(lb.grad(), want_grad.dbeta) < 10 * kClose);
  }
  CHECK(step.recorded());
}

}  // namespace

TEST_CASE("the statistics and gradients of a group on all processes are those of one process") {
  const RankSpan all{job().comm.get(), 0, job().comm->size()};
  for (const bool relu : {false, true}) {
    check_span(all, 0, relu, false, false);
    check_span(all, 0, relu, true, true);
    check_span(all, 0, relu, true, false);
  }
  check_span(all, 50, false, false, false);  // sums of squares without their mean would lose three digits here
}

TEST_CASE("groups of some of the processes keep to themselves") {
  const int size = job().comm->size(), rank = job().comm->rank();
  for (int count = 1; count < size; ++count)
    if (size % count == 0) check_span({job().comm.get(), rank / count * count, count}, 0, true, true, true);
}

TEST_CASE("a span without this process, and several groups, are refused") {
  Device& device = *job().device;
  const Var x(Tensor::full(device, {4, 2}, 1.f)), one(Tensor::full(device, {2}, 1.f));
  const RankSpan elsewhere{job().comm.get(), job().comm->rank() + 1, 1}, here{job().comm.get(), job().comm->rank(), 1};
  const auto run = [&](const RankSpan& span, int groups) {
    return error_of(
        [&] { sync_batch_norm(x, one, one, {}, {.groups = groups, .batch_mean = {}, .batch_var = {}}, span); });
  };
  CHECK(contains(run(elsewhere, 1), "without this one"));
  CHECK(contains(run(here, 2), "2 groups"));
}
