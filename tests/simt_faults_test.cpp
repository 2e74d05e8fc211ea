// The executor reports what a kernel does wrong: each rule that it watches is broken by one kernel.
#include "tests/simt_bench.h"

#include <sys/wait.h>
#include <unistd.h>

using namespace csml;
using namespace csml::cuda;
using namespace csml::test;

namespace {

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
/// Global memory is plain memory on the host: AddressSanitizer watches it, and the red zones of the kernel tests.
KERNEL void past_the_end_kernel(float* out, int n) {
  out[thread() + block().x * block_threads()] = static_cast<float>(n);
}
KERNEL void read_past_the_end_kernel(const float* x, float* out, int n) {
  float sum = 0;
  for (int i = thread(); i <= n; i += block_threads()) sum += x[i];
  out[thread()] = sum;
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
             {"kernel broken, block (", "waits in sync_block (simt_faults_test.cpp:", "thread 40 has ended"});
  check_says(bench.error(how, two_barriers_kernel),
             {"sync_block (simt_faults_test.cpp:", "waits in sync_block (simt_faults_test"});
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

#ifdef __SANITIZE_ADDRESS__
/// What a launch in a process of its own writes to stderr before it ends; empty if it ends well.
std::string told_by_process(const std::function<void()>& launches) {
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ::dup2(ends[1], 2);
    launches();
    ::_exit(0);
  }
  ::close(ends[1]);
  std::string said;
  char part[4096];
  for (ssize_t n = 0; (n = ::read(ends[0], part, sizeof part)) > 0;) said.append(part, static_cast<size_t>(n));
  ::close(ends[0]);
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? "" : said;
}

TEST_CASE("outside of global memory: AddressSanitizer ends the process") {
  Bench bench;
  const std::vector<float> x(96, 1.f);
  std::vector<float> out(96);  // two blocks of 64 threads write 128
  const Launch two{.name = "broken", .grid = {2}, .threads = 64}, one{.name = "broken", .threads = 32};
  check_says(told_by_process([&] { launch(bench.context, two, past_the_end_kernel, out.data(), 1); }),
             {"heap-buffer-overflow", "WRITE of size 4", "past_the_end_kernel"});
  check_says(told_by_process([&] { launch(bench.context, one, read_past_the_end_kernel, x.data(), out.data(), 96); }),
             {"heap-buffer-overflow", "READ of size 4", "read_past_the_end_kernel"});
  CHECK(told_by_process([&] { launch(bench.context, one, read_past_the_end_kernel, x.data(), out.data(), 95); }) == "");
  // The guards of the kernel tests, whose arrays are parts of larger ones.
  const RedZone zone(bench.memory, 96 * sizeof(float));
  const auto* in_zone = static_cast<const float*>(zone.data());
  check_says(told_by_process([&] { launch(bench.context, one, read_past_the_end_kernel, in_zone, out.data(), 96); }),
             {"use-after-poison", "READ of size 4", "read_past_the_end_kernel"});
}
#else
TEST_CASE("outside of global memory: the red zones of the kernel tests show it") {
  Bench bench;
  RedZone x(bench.memory, 96 * sizeof(float)), out(bench.memory, 96 * sizeof(float));
  x.write(std::vector<std::byte>(96 * sizeof(float)));
  const auto data = [](const RedZone& zone) { return static_cast<float*>(zone.data()); };
  const Launch one{.name = "broken", .threads = 32};
  launch(bench.context, one, read_past_the_end_kernel, data(x), data(out), 95);
  CHECK(out.check() == "");
  const auto first = [&] {
    float value = 0;
    std::memcpy(&value, out.read().data(), sizeof value);
    return value;
  };
  CHECK(first() == 0);
  launch(bench.context, one, read_past_the_end_kernel, data(x), data(out), 96);  // thread 0 reads element 96
  CHECK(std::isnan(first()));
  launch(bench.context, {.name = "broken", .grid = {2}, .threads = 64}, past_the_end_kernel, data(out), 1);
  check_says(out.check(), {"written", "after its end"});
}
#endif

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

}  // namespace
