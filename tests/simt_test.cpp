// The executor: correct kernels give the right values in any order (simt_faults_test.cpp has the broken ones).
#include "tests/simt_bench.h"

#include <set>

using namespace csml;
using namespace csml::cuda;
using namespace csml::test;

namespace {

KERNEL void where_kernel(int32_t* out) {
  const Index b = block(), g = grid();
  const int64_t flat = (b.z * g.y + b.y) * g.x + b.x;
  out[flat * block_threads() + thread()] = static_cast<int32_t>(1000 * flat + warp() * kWarp + lane());
}

KERNEL void sum_kernel(const float* x, float* sum, float* most, int n) {
  float s = 0, m = -INFINITY;
  for (int i = thread(); i < n; i += block_threads()) s += x[i], m = cuda::max(m, x[i]);
  s = block_sum(s);
  m = block_max(m);
  sum[thread()] = s;
  most[thread()] = m;
}

KERNEL void reverse_kernel(int32_t* x) {
  const auto s = dynamic_shared<int32_t>("s", 16, block_threads());
  s[thread()] = x[thread()];
  sync_block();
  x[thread()] = s[block_threads() - 1 - thread()];
}

KERNEL void lanes_kernel(int32_t* out) {
  const int me = lane();
  int32_t* row = out + thread() * 8;
  row[0] = shuffle(me * 10, 5);
  row[1] = shuffle_xor(me, 3);
  row[2] = shuffle_up(me, 2);
  row[3] = shuffle_down(me, 2);
  row[4] = static_cast<int32_t>(warp_ballot(me % 2 == 1));
  row[5] = warp_any(me == 7);
  row[6] = warp_all(me == 7);
  row[7] = static_cast<int32_t>(shuffle(int64_t{me} << 20, 31) >> 20);
}

KERNEL void count_kernel(int32_t* total, float* sum) {
  SHARED(int32_t, count, 1);
  if (thread() == 0) count[0] = 0;
  sync_block();
  atomic_add(count, 0, 1);
  sync_block();
  if (thread() == 0) atomic_add(total, int32_t(count[0]));
  atomic_add(sum, 0.5f);
  atomic_max(total + 1, thread());
}

/// Two stages of asynchronous copies, the second under way while the first is summed.
KERNEL void pipeline_kernel(const float* x, float* y, int stages, int valid) {
  SHARED(float, buffer, 2 * 128);
  const auto fetch = [&](int stage) {
    copy_async<16>(buffer, stage % 2 * 128 + thread() * 4, x + stage * 128 + thread() * 4,
                   stage * 32 + thread() < valid);
    copy_commit();
  };
  float sum = 0;
  fetch(0);
  for (int stage = 0; stage < stages; ++stage) {
    if (stage + 1 < stages) {
      fetch(stage + 1);
      copy_wait<1>();
    } else {
      copy_wait<0>();
    }
    sync_block();
    for (int i = 0; i < 4; ++i) sum += float(buffer[stage % 2 * 128 + i * 32 + (thread() + 1) % 32]);
    sync_block();
  }
  y[thread()] = sum;
}

TEST_CASE("every thread of every block runs once and knows where it is") {
  Bench bench;
  std::vector<int32_t> out(2 * 3 * 4 * 64, -1);
  launch(bench.context, {.name = "where", .grid = {2, 3, 4}, .threads = 64}, where_kernel, out.data());
  for (int i = 0; i < 2 * 3 * 4 * 64; ++i) CHECK(out[static_cast<size_t>(i)] == i / 64 * 1000 + i % 64);
  CHECK(bench.context.launches() == 1);
  launch(bench.context, {.name = "where", .grid = {0}}, where_kernel, nullptr);
  CHECK(bench.context.launches() == 1);
  check_says(bench.error({.name = "where", .threads = 33}, where_kernel, nullptr), {"where", "33 threads"});
  check_says(bench.error({.name = "where", .grid = {1, 65536}}, where_kernel, nullptr), {"65536"});
  check_says(bench.error({.name = "where", .shared_bytes = 300000}, where_kernel, nullptr), {"300000 bytes"});
}

TEST_CASE("block reductions, static and dynamic shared memory") {
  Bench bench;
  for (const int threads : {32, 96, 256, 1024}) {
    std::vector<float> x(1000), sum(static_cast<size_t>(threads)), most(sum.size());
    for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>((i * 7) % 1000);
    launch(bench.context, {.name = "sum", .threads = threads}, sum_kernel, x.data(), sum.data(), most.data(), 1000);
    CHECK(sum == std::vector<float>(sum.size(), 499500.f));
    CHECK(most == std::vector<float>(sum.size(), 999.f));
    std::vector<int32_t> y(sum.size());
    for (size_t i = 0; i < y.size(); ++i) y[i] = static_cast<int32_t>(i);
    launch(bench.context, {.name = "reverse", .threads = threads, .shared_bytes = 16 + y.size() * 4}, reverse_kernel,
           y.data());
    for (size_t i = 0; i < y.size(); ++i) REQUIRE(y[i] == static_cast<int32_t>(y.size() - 1 - i));
  }
}

TEST_CASE("shuffles and votes") {
  Bench bench;
  std::vector<int32_t> out(64 * 8);
  launch(bench.context, {.name = "lanes", .threads = 64}, lanes_kernel, out.data());
  for (int t = 0; t < 64; ++t) {
    const int me = t % 32;
    const int32_t* row = out.data() + t * 8;
    CHECK(row[0] == 50);
    CHECK(row[1] == (me ^ 3));
    CHECK(row[2] == (me >= 2 ? me - 2 : me));
    CHECK(row[3] == (me < 30 ? me + 2 : me));
    CHECK(static_cast<uint32_t>(row[4]) == 0xAAAAAAAAu);
    CHECK(row[5] == 1);
    CHECK(row[6] == 0);
    CHECK(row[7] == 31);
  }
}

TEST_CASE("atomics") {
  Bench bench;
  std::vector<int32_t> total(2, 0);
  float sum = 0;
  launch(bench.context, {.name = "count", .grid = {3}, .threads = 64}, count_kernel, total.data(), &sum);
  CHECK(total == std::vector<int32_t>{192, 63});
  CHECK(sum == 96);
}

TEST_CASE("asynchronous copies") {
  Bench bench;
  std::vector<float> x(5 * 128), y(32);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i);
  launch(bench.context, {.name = "pipeline", .threads = 32}, pipeline_kernel, x.data(), y.data(), 5, 5 * 32 - 1);
  for (int t = 0; t < 32; ++t) {
    float want = 0;  // the last four values are not valid: zeros
    for (int i = 0; i < 20; ++i) {
      const int at = i * 32 + (t + 1) % 32;
      if (at < 636) want += static_cast<float>(at);
    }
    CHECK(y[static_cast<size_t>(t)] == want);
  }
}

// ---- matrix fragments -----------------------------------------------------------------------------------------------

/// D = A[16 x 16] * B[16 x 8], once with fragments filled by hand after the layout, once with load_matrices.
template <class T>
KERNEL void mma16_kernel(const T* a, const T* b, float* by_hand, float* loaded) {
  const int g = lane() / 4, t = lane() % 4;
  const auto two = [](T low, T high) { return low.bits | static_cast<uint32_t>(high.bits) << 16; };
  const auto pair_a = [&](int row, int k) { return two(a[row * 16 + k], a[row * 16 + k + 1]); };
  FragmentA<T> fa{{pair_a(g, 2 * t), pair_a(g + 8, 2 * t), pair_a(g, 2 * t + 8), pair_a(g + 8, 2 * t + 8)}};
  FragmentB<T> fb{{two(b[2 * t * 8 + g], b[(2 * t + 1) * 8 + g]), two(b[(2 * t + 8) * 8 + g], b[(2 * t + 9) * 8 + g])}};
  const auto store = [&](float* out, const FragmentD& d) {
    for (int j = 0; j < 4; ++j) out[(g + 8 * (j / 2)) * 8 + 2 * t + j % 2] = d.v[j];
  };
  FragmentD d{};
  mma(d, fa, fb);
  store(by_hand, d);

  SHARED(T, sa, 256);
  SHARED(T, sb, 128);
  for (int i = lane(); i < 256; i += kWarp) sa[i] = a[i];
  for (int i = lane(); i < 128; i += kWarp) sb[i] = b[i];
  sync_warp();
  load_matrices<4>(fa.r, sa, lane() % 16 * 16 + lane() / 16 * 8);
  load_matrices<2, true>(fb.r, sb, lane() % 16 * 8);
  d = {};
  mma(d, fa, fb);
  mma(d, fa, fb);
  store(loaded, d);
}

KERNEL void mma8_kernel(const float* a, const float* b, float* out) {
  const int g = lane() / 4, t = lane() % 4;
  const FragmentA<tf32> fa{
      {to_tf32(a[g * 8 + t]), to_tf32(a[(g + 8) * 8 + t]), to_tf32(a[g * 8 + t + 4]), to_tf32(a[(g + 8) * 8 + t + 4])}};
  const FragmentB<tf32> fb{{to_tf32(b[t * 8 + g]), to_tf32(b[(t + 4) * 8 + g])}};
  FragmentD d{};
  mma(d, fa, fb);
  for (int j = 0; j < 4; ++j) out[(g + 8 * (j / 2)) * 8 + 2 * t + j % 2] = d.v[j];
}

template <class T>
void check_mma(int depth, const std::function<void(Context&, const T*, const T*, float*, float*)>& run) {
  Bench bench;
  Random random(5, Purpose::test);
  std::vector<T> a, b;
  for (int i = 0; i < 16 * depth; ++i) a.push_back(T(static_cast<float>(random.below(17)) - 8));
  for (int i = 0; i < depth * 8; ++i) b.push_back(T(static_cast<float>(random.below(17)) - 8));
  std::vector<float> once(128, NAN), twice(128, NAN);
  run(bench.context, a.data(), b.data(), once.data(), twice.data());
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column) {
      float want = 0;
      for (int k = 0; k < depth; ++k)
        want += static_cast<float>(a[static_cast<size_t>(row * depth + k)]) *
                static_cast<float>(b[static_cast<size_t>(k * 8 + column)]);
      CHECK(once[static_cast<size_t>(row * 8 + column)] == want);
      CHECK(twice[static_cast<size_t>(row * 8 + column)] == 2 * want);
    }
}

TEST_CASE_TEMPLATE("matrix fragments of 16-bit types", T, bf16, f16) {
  check_mma<T>(16, [](Context& context, const T* a, const T* b, float* once, float* twice) {
    launch(context, {.name = "mma16", .threads = 32}, mma16_kernel<T>, a, b, once, twice);
  });
}

TEST_CASE("matrix fragments of tf32") {
  check_mma<float>(8, [](Context& context, const float* a, const float* b, float* once, float* twice) {
    launch(context, {.name = "mma8", .threads = 32}, mma8_kernel, a, b, once);
    for (int i = 0; i < 128; ++i) twice[i] = 2 * once[i];
  });
  CHECK(to_tf32(1.f + 0x1p-11f) == __builtin_bit_cast(uint32_t, 1.f + 0x1p-10f));  // a tie, away from zero
  CHECK(to_tf32(1.f + 0x1p-12f) == __builtin_bit_cast(uint32_t, 1.f));
  CHECK(to_tf32(INFINITY) == __builtin_bit_cast(uint32_t, INFINITY));
}

/// Order matters here, on purpose: the last writer of a word in global memory wins.
KERNEL void last_kernel(int* out) { *out = block().x * block_threads() + thread(); }

TEST_CASE("threads and blocks run in an order that the seed decides") {
  Bench bench;
  const auto winners = [&](uint64_t seed) {
    simt::Executor::get().set_seed(seed);
    std::vector<int> won(20);
    for (int& w : won) launch(bench.context, {.name = "last", .grid = {4}, .threads = 64}, last_kernel, &w);
    return won;
  };
  const std::vector<int> first = winners(1);
  CHECK(winners(1) == first);
  CHECK(winners(2) != first);
  CHECK(std::set<int>(first.begin(), first.end()).size() > 5);
}

TEST_CASE("scratch memory grows, but not while recording") {
  Bench bench;
  void* first = bench.context.scratch(1000);
  CHECK(bench.context.scratch(500) == first);
  bench.context.set_recording(true);
  CHECK(bench.context.scratch(1000) == first);
  CHECK_THROWS_AS(bench.context.scratch(100000), Error);
  bench.context.set_recording(false);
  std::memset(bench.context.scratch(100000), 0, 100000);
  std::memset(first, 0, 1000);  // a recording may still use it
}

KERNEL void report_kernel(Failure* failure) {
  if (thread() == 5) report(failure, Failure::label_range, 7, -3, 10);
}

TEST_CASE("what a kernel reports is thrown once") {
  Bench bench;
  launch(bench.context, {.name = "report"}, report_kernel, bench.context.failure());
  std::string said;
  try {
    bench.context.check_failure();
  } catch (const Error& e) { said = e.what(); }
  check_says(said, {"label -3 of row 7 is outside [0, 10)"});
  CHECK_NOTHROW(bench.context.check_failure());
}

}  // namespace
