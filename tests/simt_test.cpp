// The executor: correct kernels give the right values in any order; each rule it watches is broken once and reported.
#define CSML_SIMT "tests/simt/device.h"
#include "kernels/cuda/launch.cuh"
#include "tests/simt/simt_backend.h"
#include "tests/test.h"

// After the project's headers: doctest's CHECK replaces that of kernels/check.h from here on.
#include <doctest/doctest.h>

#include <set>

using namespace csml;
using namespace csml::cuda;
using namespace csml::test;

namespace {

struct Bench {
  SimtBackend memory;
  Failure failure;
  Context context{memory, &failure, nullptr, 2, 90};

  /// What the launch fails with; empty if it does not.
  template <class... Params>
  std::string error(const Launch& how, void (*kernel)(Params...), std::type_identity_t<Params>... args) {
    try {
      launch(context, how, kernel, args...);
    } catch (const Error& e) { return e.what(); }
    return "";
  }
};

/// The text has all the parts, in order.
bool says(const std::string& text, std::initializer_list<const char*> parts) {
  size_t at = 0;
  for (const char* part : parts) {
    at = text.find(part, at);
    if (at == std::string::npos) return false;
  }
  return true;
}
void check_says(const std::string& text, std::initializer_list<const char*> parts) {
  CHECK_MESSAGE(says(text, parts), "said: " << text);
}

// ---- correct kernels ------------------------------------------------------------------------------------------------

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

// ---- broken kernels: each breaks one rule ---------------------------------------------------------------------------

KERNEL void ended_kernel() {
  if (thread() == 40) return;
  sync_block();
}
KERNEL void two_barriers_kernel() {
  if (thread() < 32)
    sync_block();
  else
    sync_block();
}
KERNEL void uneven_loop_kernel() {
  for (int i = 0; i < 1 + thread() / 32; ++i) sync_block();
}
KERNEL void lane_missing_kernel(int* out) {
  if (lane() != 9) out[thread()] = shuffle(thread(), 0);
}
KERNEL void lanes_disagree_kernel(int* out) {
  out[thread()] = lane() < 16 ? shuffle_xor(thread(), 1) : shuffle_xor(thread(), 2);
}
KERNEL void warp_at_barrier_kernel() {
  if (thread() == 3)
    sync_warp();
  else
    sync_block();
}
KERNEL void outside_kernel(int at) {
  SHARED(float, tile, 64);
  tile[thread() + at] = 1;
}
KERNEL void pack_outside_kernel() {
  const auto tile = dynamic_shared<float>("tile", 0, 66);
  store_pack(tile, 4 * thread(), Pack<float, 4>{});
}
KERNEL void dynamic_outside_kernel() { dynamic_shared<float>("tile", 4, 64); }
KERNEL void slice_outside_kernel() {
  SHARED(float, tile, 64);
  tile.slice(32, 33);
}
KERNEL void misaligned_kernel(float* x) { load_pack<4>(x + 1); }
KERNEL void misaligned_shared_kernel() {
  SHARED(float, tile, 64);
  store_pack(tile, 2, Pack<float, 4>{});
}
KERNEL void uninitialised_kernel(float* out) {
  SHARED(float, tile, 64);
  if (thread() != 7) tile[thread()] = 1;
  sync_block();
  out[thread()] = tile[63 - thread()];
}
/// Shared memory does not keep what another block wrote.
KERNEL void second_block_kernel(int* written, float* out) {
  SHARED(float, tile, 1);
  if (thread() == 0 && *written == 0) tile[0] = 1;
  sync_block();
  *written = 1;
  out[thread()] = tile[0];
}
KERNEL void read_race_kernel(float* out) {
  SHARED(float, tile, 64);
  tile[thread()] = 1;
  out[thread()] = tile[63 - thread()];
}
KERNEL void write_race_kernel() {
  SHARED(float, tile, 1);
  tile[0] = 1;
}
/// The barrier after the reads is missing: the next round's writes race with them.
KERNEL void reuse_race_kernel(float* out) {
  SHARED(float, tile, 64);
  for (int round = 0; round < 2; ++round) {
    tile[thread()] = static_cast<float>(round);
    sync_block();
    out[thread()] += float(tile[63 - thread()]);
  }
}
/// sync_warp orders the lanes of a warp: right for neighbours, wrong for other warps.
KERNEL void warp_order_kernel(float* out, int distance) {
  SHARED(float, tile, 64);
  tile[thread()] = 1;
  sync_warp();
  out[thread()] = tile[thread() ^ distance];
}
/// A shuffle waits for the warp but does not order memory.
KERNEL void shuffle_order_kernel(float* out) {
  SHARED(float, tile, 32);
  tile[thread()] = 1;
  shuffle(thread(), 0);
  out[thread()] = tile[31 - thread()];
}
/// Neighbouring bytes are words of their own.
KERNEL void bytes_kernel(uint8_t* out, int overlap) {
  SHARED(uint8_t, tile, 64);
  tile[thread()] = 1;
  if (overlap && thread() == 1) tile[0] = 2;
  sync_block();
  out[thread()] = tile[63 - thread()];
}
/// Two arrays over the same bytes.
KERNEL void alias_race_kernel(float* out) {
  const auto a = dynamic_shared<float>("a", 0, 64);
  const auto b = dynamic_shared<uint16_t>("b", 0, 128);
  a[thread()] = 1;
  sync_block();
  out[thread()] = a[63 - thread()];
  b[2 * thread() + 1] = 0;
}
KERNEL void atomic_race_kernel(int32_t* out) {
  SHARED(int32_t, count, 1);
  if (thread() == 0) count[0] = 0;
  sync_block();
  atomic_add(count, 0, 1);
  out[thread()] = count[0];
}
KERNEL void early_copy_kernel(const float* x, float* out, int wait) {
  SHARED(float, tile, 64);
  copy_async<4>(tile, thread(), x + thread());
  copy_commit();
  if (wait == 1) copy_wait<1>();  // leaves the last group under way
  if (wait == 2) copy_wait<0>();
  const int from = wait == 2 ? 63 - thread() : thread();
  out[thread()] = tile[from];  // after a wait: one's own part, not another's
  copy_wait<0>();
}
KERNEL void uncommitted_copy_kernel(const float* x, float* out) {
  SHARED(float, tile, 64);
  copy_async<4>(tile, thread(), x + thread());
  copy_wait<0>();  // waits for committed groups, of which there is none
  out[thread()] = tile[thread()];
}
KERNEL void forgotten_copy_kernel(const float* x) {
  SHARED(float, tile, 64);
  copy_async<4>(tile, thread(), x + thread());
  copy_commit();
}
KERNEL void good_kernel(float* out) {
  SHARED(float, tile, 64);
  tile[thread()] = static_cast<float>(thread());
  sync_block();
  out[thread()] = tile[63 - thread()];
}

TEST_CASE("barriers that not every thread reaches") {
  Bench bench;
  const Launch how{.name = "broken", .grid = {2}, .threads = 64};
  std::vector<int> out(64);
  check_says(bench.error(how, ended_kernel),
             {"kernel broken, block (", "waits in sync_block (simt_test.cpp:", "thread 40 has ended"});
  check_says(bench.error(how, two_barriers_kernel), {"sync_block (simt_test.cpp:", "waits in sync_block (simt_test"});
  check_says(bench.error(how, uneven_loop_kernel), {"waits in sync_block", "has ended"});
  check_says(bench.error(how, lane_missing_kernel, out.data()), {"waits in shuffle", "has ended"});
  check_says(bench.error(how, lanes_disagree_kernel, out.data()), {"shuffle_xor", "all lanes of a warp must meet"});
  check_says(bench.error(how, warp_at_barrier_kernel), {"thread 3: waits in sync_warp", "waits in sync_block"});
}

TEST_CASE("outside of shared memory, and not aligned") {
  Bench bench;
  const Launch how{.name = "broken", .threads = 64, .shared_bytes = 264};
  std::vector<float> x(64);
  CHECK(bench.error(how, outside_kernel, 0) == "");
  check_says(bench.error(how, outside_kernel, 1), {"thread 63: element 64 of shared array tile, which has 64"});
  check_says(bench.error(how, outside_kernel, -1), {"thread 0: element -1 of shared array tile"});
  check_says(bench.error(how, pack_outside_kernel), {"elements", "of shared array tile, which has 66"});
  check_says(bench.error({.name = "broken", .threads = 64, .shared_bytes = 256}, dynamic_outside_kernel),
             {"dynamic shared array tile: bytes 4 to 260 of the 256"});
  check_says(bench.error(how, slice_outside_kernel), {"slice of elements 32 to 64"});
  check_says(bench.error(how, misaligned_kernel, x.data()), {"load_pack of 16 bytes", "off"});
  check_says(bench.error(how, misaligned_shared_kernel), {"store_pack of 16 bytes at tile[2]"});
}

TEST_CASE("shared memory that nobody has written") {
  Bench bench;
  std::vector<float> out(64);
  int written = 0;
  check_says(bench.error({.name = "broken", .threads = 64}, uninitialised_kernel, out.data()),
             {"kernel broken, block (0, 0, 0), thread 56: tile[7]: reads it, which no thread has written"});
  check_says(bench.error({.name = "broken", .grid = {2}, .threads = 64}, second_block_kernel, &written, out.data()),
             {"tile[0]: reads it, which no thread has written"});
}

TEST_CASE("races in shared memory") {
  Bench bench;
  const Launch how{.name = "broken", .threads = 64, .shared_bytes = 256};
  std::vector<float> out(64);
  std::vector<int32_t> counts(64);
  std::vector<uint8_t> bytes(64);
  CHECK(bench.error(how, good_kernel, out.data()) == "");
  const std::string race = bench.error(how, read_race_kernel, out.data());
  CHECK_MESSAGE((says(race, {"(race)"}) || says(race, {"no thread has written"})), race);  // who is first is drawn
  check_says(bench.error(how, write_race_kernel), {"tile[0]: writes it while thread", "wrote it", "(race)"});
  check_says(bench.error(how, reuse_race_kernel, out.data()), {"tile[", "(race)"});
  CHECK(bench.error(how, warp_order_kernel, out.data(), 31) == "");
  const std::string across = bench.error(how, warp_order_kernel, out.data(), 32);
  CHECK_MESSAGE((says(across, {"(race)"}) || says(across, {"no thread has written"})), across);
  check_says(bench.error({.name = "broken", .threads = 32}, shuffle_order_kernel, out.data()), {"(race)"});
  CHECK(bench.error(how, bytes_kernel, bytes.data(), 0) == "");
  check_says(bench.error(how, bytes_kernel, bytes.data(), 1), {"tile[0]: writes it", "(race)"});
  check_says(bench.error(how, alias_race_kernel, out.data()), {"(race)"});
  check_says(bench.error(how, atomic_race_kernel, counts.data()), {"count[0]", "(race)"});
}

TEST_CASE("asynchronous copies that were not waited for") {
  Bench bench;
  const Launch how{.name = "broken", .threads = 64};
  std::vector<float> x(64, 3), out(64);
  check_says(bench.error(how, early_copy_kernel, x.data(), out.data(), 0), {"tile[", "before the copy_wait"});
  check_says(bench.error(how, early_copy_kernel, x.data(), out.data(), 1), {"tile[", "before the copy_wait"});
  const std::string others = bench.error(how, early_copy_kernel, x.data(), out.data(), 2);
  CHECK_MESSAGE((says(others, {"(race)"}) || says(others, {"no thread has written"})), others);
  check_says(bench.error(how, uncommitted_copy_kernel, x.data(), out.data()), {"before the copy_wait"});
  check_says(bench.error(how, forgotten_copy_kernel, x.data()), {"ends with a copy_async"});
}

TEST_CASE("every fault is found in every order, and the executor goes on after it") {
  Bench bench;
  const Launch how{.name = "broken", .threads = 64};
  std::vector<float> out(64);
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    simt::Executor::get().set_seed(seed);
    CHECK(bench.error(how, read_race_kernel, out.data()) != "");
    CHECK(bench.error(how, reuse_race_kernel, out.data()) != "");
    CHECK(bench.error(how, ended_kernel) != "");
    CHECK(bench.error(how, write_race_kernel) != "");
    CHECK(bench.error(how, good_kernel, out.data()) == "");
    for (int t = 0; t < 64; ++t) REQUIRE(out[static_cast<size_t>(t)] == static_cast<float>(63 - t));
  }
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
