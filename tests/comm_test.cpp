// Communication: every collective against its formula, started ahead and recorded too; texts and shares; gradient
// buckets; the watchdog's line; how a job is recognised. Run as it is (one process) and under mpirun.
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <numeric>

#include "engine/buckets.h"
#include "engine/comm_rehearsal.h"
#include "engine/layers.h"
#include "engine/ops.h"
#include "engine/step.h"
#include "engine/timeline.h"
#include "engine/watchdog.h"
#include "kernels/random.h"

#include "tests/files.h"

using namespace csml;

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

/// What rank r holds at place i: small whole numbers, whose sums and means are exact in f32 in any order.
int value(int rank, int64_t i) { return static_cast<int>((i * 7 + rank * 13) % 31) - 9; }

template <class T>
Tensor values(int64_t n) {
  std::vector<T> v(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) v[static_cast<size_t>(i)] = static_cast<T>(value(job().comm->rank(), i));
  return Tensor::from(*job().device, {n}, v);
}

/// Places where t differs from expected(sum, max, min of the ranks' values).
template <class T, class F>
int64_t wrong(const Tensor& t, const F& expected) {
  const std::vector<T> got = t.host<T>();
  int64_t count = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    int sum = 0, most = -1000, least = 1000;
    for (int r = 0; r < job().comm->size(); ++r) {
      const int v = value(r, static_cast<int64_t>(i));
      sum += v;
      most = std::max(most, v);
      least = std::min(least, v);
    }
    count += got[i] != static_cast<T>(expected(sum, most, least));
  }
  return count;
}

const auto kSum = [](int sum, int, int) { return sum; };
const auto kMost = [](int, int most, int) { return most; };
const auto kLeast = [](int, int, int least) { return least; };
const auto kMean = [](int sum, int, int) {
  return static_cast<float>(sum) * (1.f / static_cast<float>(job().comm->size()));
};

template <class T>
void check_reductions() {
  Comm& comm = *job().comm;
  for (const int64_t n : {1, 17, 100'003}) {
    CAPTURE(n);
    Tensor t = values<T>(n);
    comm.all_reduce_sum(t);
    CHECK(wrong<T>(t, kSum) == 0);
    t = values<T>(n);
    comm.all_reduce_max(t);
    CHECK(wrong<T>(t, kMost) == 0);
    t = values<T>(n);
    comm.all_reduce_min(t);
    CHECK(wrong<T>(t, kLeast) == 0);
  }
}

/// all[r * n + i] = value(r, i)?
template <class T>
int64_t gathered_wrong(const Tensor& all, int64_t n) {
  const std::vector<T> got = all.host<T>();
  int64_t count = 0;
  for (size_t i = 0; i < got.size(); ++i)
    count +=
        got[i] != static_cast<T>(value(static_cast<int>(static_cast<int64_t>(i) / n), static_cast<int64_t>(i) % n));
  return count;
}

template <class T>
void check_gather() {
  Comm& comm = *job().comm;
  for (const int64_t n : {1, 6, 5'000}) {
    CAPTURE(n);
    const Tensor all(*job().device, {n * comm.size()}, dtype_of<T>::value);
    comm.all_gather(values<T>(n), all);
    CHECK(gathered_wrong<T>(all, n) == 0);
    // In place, and with rows of several elements.
    const Tensor table(*job().device, {n * comm.size(), 1}, dtype_of<T>::value);
    const Tensor mine = table.rows(n * comm.rank(), n);
    copy(values<T>(n), mine);
    comm.all_gather(mine, table);
    CHECK(gathered_wrong<T>(table, n) == 0);
  }
}

template <class T>
void check_broadcast() {
  Comm& comm = *job().comm;
  for (int root = 0; root < comm.size(); ++root) {
    const Tensor t = values<T>(1'001);
    comm.broadcast(t, root);
    const std::vector<T> got = t.host<T>();
    int64_t bad = 0;
    for (size_t i = 0; i < got.size(); ++i) bad += got[i] != static_cast<T>(value(root, static_cast<int64_t>(i)));
    CHECK(bad == 0);
  }
}

std::string bytes_of(const Tensor& t) {
  std::string bytes(t.bytes(), '\0');
  t.download_bytes(bytes.data());
  return bytes;
}

/// Do all ranks hold the same bits?
bool same_everywhere(const Tensor& t) {
  const std::vector<std::string> all = gather_text(*job().comm, *job().device, bytes_of(t));
  return std::all_of(all.begin(), all.end(), [&](const std::string& bytes) { return bytes == all[0]; });
}

}  // namespace

TEST_CASE("reductions over ranks, f32 and i32") {
  check_reductions<float>();
  check_reductions<int32_t>();
  const Tensor t = values<float>(1'000);
  job().comm->all_reduce_mean(t);
  CHECK(wrong<float>(t, kMean) == 0);
}

TEST_CASE("gathering in rank order and broadcasting, every element type") {
  check_gather<float>();
  check_gather<int32_t>();
  check_gather<int64_t>();
  check_gather<uint8_t>();
  check_broadcast<float>();
  check_broadcast<int64_t>();
  check_broadcast<uint8_t>();
  job().comm->barrier();
}

TEST_CASE("a sum of any numbers has the same bits on every rank") {
  Random random(7, Purpose::test, static_cast<uint64_t>(job().comm->rank()));
  std::vector<float> v(30'011);
  for (float& x : v) x = random.normal() * std::exp(4 * random.normal());
  const Tensor sum = Tensor::from(*job().device, {30'011}, v);
  job().comm->all_reduce_sum(sum);
  CHECK(same_everywhere(sum));
  const Tensor mean = Tensor::from(*job().device, {30'011}, v);
  job().comm->fork();
  job().comm->all_reduce_mean(mean.rows(0, 30'000));
  job().comm->all_reduce_mean(mean.rows(30'000, 11));
  job().comm->join();
  CHECK(same_everywhere(mean));
}

TEST_CASE("reductions that are started ahead end as the others do") {
  Comm& comm = *job().comm;
  std::vector<Tensor> means;
  for (int64_t n = 1; n < 3'000; n = n * 3 + 1) means.push_back(values<float>(n));
  const Tensor most = values<int32_t>(500);
  comm.fork();
  for (const Tensor& t : means) comm.all_reduce_mean(t);
  comm.all_reduce_max(most);
  comm.join();
  for (const Tensor& t : means) CHECK(wrong<float>(t, kMean) == 0);
  CHECK(wrong<int32_t>(most, kMost) == 0);
  comm.fork();
  comm.join();
}

TEST_CASE("collectives stand in a recorded step") {
  Comm& comm = *job().comm;
  REQUIRE(comm.recordable());
  Device& device = *job().device;
  const Tensor input = values<float>(64), mean(device, {64}), all(device, {64 * comm.size()});
  Step step(device, [&] {
    copy(input, mean);
    comm.all_gather(input, all);
    comm.fork();
    comm.all_reduce_mean(mean);
    comm.join();
  });
  for (int run = 0; run < 4; ++run) {
    fill(mean, -1);
    fill(all, -1);
    std::vector<float> shifted(64);  // other values in each run: a replay computes, it does not repeat results
    for (int64_t i = 0; i < 64; ++i)
      shifted[static_cast<size_t>(i)] = static_cast<float>(value(comm.rank(), i) + 4 * comm.size() * run);
    input.upload(shifted);
    step.run();
    CHECK(wrong<float>(mean, [&](int sum, int, int) {
            return static_cast<float>(sum + 4 * comm.size() * comm.size() * run) *
                   (1.f / static_cast<float>(comm.size()));
          }) == 0);
    const std::vector<float> got = all.host<float>();
    int bad = 0;
    for (int64_t i = 0; i < 64 * comm.size(); ++i)
      bad += got[static_cast<size_t>(i)] !=
             static_cast<float>(value(static_cast<int>(i / 64), i % 64) + 4 * comm.size() * run);
    CHECK(bad == 0);
  }
  CHECK(step.recorded());
}

TEST_CASE("texts of every rank, and every item has one owner") {
  Comm& comm = *job().comm;
  Device& device = *job().device;
  const std::string mine(static_cast<size_t>(comm.rank() * 3), static_cast<char>('a' + comm.rank()));
  const std::vector<std::string> all = gather_text(comm, device, mine);
  REQUIRE(all.size() == static_cast<size_t>(comm.size()));
  for (int r = 0; r < comm.size(); ++r)
    CHECK(all[static_cast<size_t>(r)] == std::string(static_cast<size_t>(r * 3), static_cast<char>('a' + r)));
  const int root = comm.size() - 1;
  CHECK(broadcast_text(comm, device, cat("said by {}", comm.rank()), root) == cat("said by {}", root));
  CHECK(broadcast_text(comm, device, "", root) == "");
  for (const int64_t n : {0, 1, 3, 4, 5, 100, 101}) {
    const Share s = share_of(comm, n);
    CHECK(s.last - s.first <= s.each);
    CHECK(s.each * comm.size() >= n);
    const Tensor owned = Tensor::from(device, {1}, std::vector<int32_t>{static_cast<int32_t>(s.last - s.first)});
    comm.all_reduce_sum(owned);
    CHECK(owned.host<int32_t>()[0] == n);
  }
}

TEST_CASE("gradient buckets average over ranks, however small they are and whatever no gradient reaches") {
  Comm& comm = *job().comm;
  Device& device = *job().device;
  Params params(device);
  const Linear first(params, "first", 12, 20), unused(params, "unused", 5, 7), second(params, "second", 20, 3);
  params.build(3, true);
  const auto loss_of = [&](int rank) {
    std::vector<float> x(4 * 12);
    for (size_t i = 0; i < x.size(); ++i) x[i] = 0.1f * static_cast<float>(value(rank, static_cast<int64_t>(i)));
    const Var hidden = relu(first(Var(Tensor::from(device, {4, 12}, x))));
    return cross_entropy(second(hidden), Tensor::from(device, {4}, std::vector<int32_t>{0, 1, 2, 0}));
  };
  // The mean in double of what each rank's pass leaves alone.
  std::vector<double> want(static_cast<size_t>(params.grad().size()), 0.0);
  for (int r = 0; r < comm.size(); ++r) {
    params.begin_gradients();
    loss_of(r).backward();
    params.finish_gradients();
    const std::vector<float> grad = params.grad().host<float>();
    for (size_t i = 0; i < want.size(); ++i) want[i] += static_cast<double>(grad[i]) / comm.size();
  }
  std::vector<size_t> counts;
  for (const int64_t bytes : {1, 700, 1 << 20}) {
    GradientBuckets buckets(params, comm, bytes);
    counts.push_back(buckets.count());
    for (int run = 0; run < 2; ++run) {
      fill(params.grad(), 9);  // what nobody writes must not stay
      buckets.backward(loss_of(comm.rank()));
      const std::vector<float> got = params.grad().host<float>();
      double worst = 0;
      for (const Params::Entry& e : params.entries())
        for (int64_t i = e.offset; i < e.offset + e.shape.size(); ++i)
          worst = std::max(worst, std::abs(got[static_cast<size_t>(i)] - want[static_cast<size_t>(i)]));
      CHECK(worst < 1e-6);  // gradients of size 0.1 to 1, summed in another order
    }
  }
  CHECK(counts == std::vector<size_t>{6, 2, 1});
  CHECK(GradientBuckets(params, comm).count() > 1);  // by itself, however small the network is
}

TEST_CASE("reductions of gradient buckets start while backward goes on, in the order in which buckets are complete") {
  Comm& comm = *job().comm;
  Device& device = *job().device;
  Params params(device);
  std::vector<Linear> layers;
  for (int i = 0; i < 6; ++i) layers.emplace_back(params, cat("layer{}", i), 64, 64);
  params.build(3, true);
  const Tensor x = Tensor::full(device, {32, 64}, 0.1f),
               labels = Tensor::from(device, {32}, std::vector<int32_t>(32, 1));
  GradientBuckets buckets(params, comm, 64 * 64 * sizeof(float));  // a layer each, and what is left
  Timeline timeline(comm.rank());
  device.set_timeline(&timeline);
  {
    Step step(device, [&] {
      Var h(x);
      for (const Linear& layer : layers) h = relu(layer(h));
      buckets.backward(cross_entropy(h, labels));
    });
    for (int run = 0; run < 4; ++run) step.run();  // eager, recorded, replayed twice
  }
  device.set_timeline(nullptr);

  using Track = Timeline::Track;
  const auto of_track = [&](Track track) {
    std::vector<Timeline::Span> spans;
    for (const Timeline::Span& s : timeline.spans())
      if (s.track == track) spans.push_back(s);
    std::sort(spans.begin(), spans.end(), [](const auto& a, const auto& b) { return a.begin < b.begin; });
    return spans;
  };
  const auto passes = of_track(Track::passes), ops = of_track(Track::compute), complete = of_track(Track::buckets),
             reductions = of_track(Track::communication);
  REQUIRE(passes.size() == 4);
  REQUIRE(ops.size() == 4 * 13);  // six layers of two ops, the loss
  REQUIRE(complete.size() == 4 * buckets.count());
  REQUIRE(reductions.size() == (comm.size() > 1 ? complete.size() : 0));
  for (size_t p = 0; p < passes.size(); ++p) {
    const double last_op = ops[(p + 1) * 13 - 1].end;
    CHECK(passes[p].begin <= ops[p * 13].begin);
    CHECK(last_op <= passes[p].end);
    for (size_t b = 0; b < buckets.count(); ++b) {
      const size_t at = p * buckets.count() + b;
      CHECK(complete[at].name.starts_with(cat("bucket {}:", b)));
      if (reductions.empty()) continue;
      CHECK(complete[at].begin <= reductions[at].begin);
      if (b + 1 < buckets.count()) {
        CHECK(reductions[at].begin <= complete[at + 1].begin);
        CHECK(reductions[at].begin < last_op);  // all but the last start during backward
      }
      CHECK(reductions[at].end <= passes[p].end);
    }
  }
  const Folder folder;
  timeline.write(folder.path / "trace.json");
  const nlohmann::json trace = nlohmann::json::parse(slurp(folder.path / "trace.json"));
  CHECK(trace["traceEvents"].size() == 5 + timeline.spans().size());
  CHECK((trace["otherData"]["communication_seconds"].get<double>() > 0) == (comm.size() > 1));
}

TEST_CASE("exposed communication is that beside which nothing is computed") {
  using Track = Timeline::Track;
  Timeline t(0, 7);
  t.add({Track::compute, "", 0, 2});
  t.add({Track::compute, "", 3, 4});
  t.add({Track::compute, "", 9, 10});
  t.add({Track::communication, "", 1, 3.5});
  t.add({Track::communication, "", 3, 5});    // overlaps the one before
  t.add({Track::communication, "", 11, 12});  // all exposed
  t.add({Track::buckets, "", 1, 1});
  t.add({Track::communication, "", 20, 30});  // one too many: dropped
  const Timeline::Communication c = t.communication();
  CHECK(c.whole == doctest::Approx(5));            // 1 … 5, 11 … 12
  CHECK(c.exposed == doctest::Approx(1 + 1 + 1));  // 2 … 3, 4 … 5, 11 … 12
  CHECK(c.share == doctest::Approx(3.0 / 5));
  CHECK(t.spans().size() == 7);
  CHECK(Timeline().communication().share == 0);
}

TEST_CASE("a rehearsal computes what one process does and moves what its reductions would move") {
  Device& device = *job().device;
  const auto comm = rehearsal(device);
  const Tensor t = values<float>(1000);
  const std::vector<float> before = t.host<float>();
  comm->fork();
  comm->all_reduce_mean(t);
  comm->all_reduce_sum(t.rows(0, 10));
  comm->join();
  CHECK(t.host<float>() == before);
  CHECK(comm->size() == 1);
  CHECK(comm->recordable());
}

TEST_CASE("misuse is refused before anything is sent") {
  Comm& comm = *job().comm;
  if (comm.size() == 1) return;
  Device& device = *job().device;
  CHECK(contains(error_of([&] { comm.all_reduce_mean(values<int32_t>(3)); }), "i32"));
  CHECK(contains(error_of([&] { comm.all_reduce_sum(values<int64_t>(3)); }), "i64"));
  CHECK(contains(error_of([&] { comm.all_gather(values<float>(3), Tensor(device, {4})); }), "all_gather"));
  CHECK(contains(error_of([&] { comm.broadcast(values<float>(3), comm.size()); }), "broadcast"));
}

TEST_CASE("the watchdog's line names the rank, the phase and the calls") {
  Watchdog watchdog(2, 4, 0);
  watchdog.phase("step 17");
  watchdog.enter("all_gather", 100);
  watchdog.leave();
  watchdog.enter("all_reduce_mean", 3 << 20);
  watchdog.leave();
  watchdog.enter("barrier", 0);
  const std::string line = watchdog.report(61);
  CHECK(contains(line, "[rank 2] barrier (call 3) has waited 61 s for the other processes in step 17"));
  CHECK(contains(line, "all_reduce_mean of 3072.0 KiB (call 2), all_gather of 100 bytes (call 1)"));
  CHECK(contains(line, "4 processes"));
  CHECK(contains(line, "exit code 70"));
}

namespace {

/// The variables by which a job is recognised, set for a moment.
struct Environment {
  explicit Environment(const std::map<std::string, std::string>& set = {}) {
    for (const char* name : {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
                             "OMPI_COMM_WORLD_LOCAL_SIZE", "PMIX_RANK", "PMI_RANK", "PMI_SIZE", "SLURM_STEP_NUM_TASKS",
                             "SLURM_PROCID", "SLURM_LOCALID", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE",
                             "MPI_LOCALRANKID", "MPI_LOCALNRANKS", "SLURM_NODEID", "SLURM_STEP_TASKS_PER_NODE"}) {
      if (const char* value = std::getenv(name)) before[name] = value;
      names.push_back(name);
      ::unsetenv(name);
    }
    for (const auto& [name, value] : set) ::setenv(name.c_str(), value.c_str(), 1);
  }
  ~Environment() {
    for (const std::string& name : names) ::unsetenv(name.c_str());
    for (const auto& [name, value] : before) ::setenv(name.c_str(), value.c_str(), 1);
  }
  std::vector<std::string> names;
  std::map<std::string, std::string> before;
};

}  // namespace

TEST_CASE("a job is recognised by what its launcher leaves in the environment") {
  const auto is = [](const std::map<std::string, std::string>& set, Launch::By by, int rank, int size, int local_rank) {
    const Environment environment(set);
    const Launch l = launch();
    return l.by == by && l.rank == rank && l.size == size && l.local_rank == local_rank;
  };
  using By = Launch::By;
  CHECK(is({}, By::alone, 0, 1, 0));
  CHECK(is({{"OMPI_COMM_WORLD_RANK", "3"},
            {"OMPI_COMM_WORLD_SIZE", "8"},
            {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
            {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}},
           By::mpi, 3, 8, 1));
  CHECK(is({{"PMIX_RANK", "5"}, {"SLURM_STEP_NUM_TASKS", "8"}, {"SLURM_PROCID", "5"}, {"SLURM_LOCALID", "2"}}, By::mpi,
           5, 8, 2));
  CHECK(is({{"RANK", "2"}, {"WORLD_SIZE", "4"}, {"LOCAL_RANK", "0"}}, By::variables, 2, 4, 0));
  CHECK(is({{"SLURM_PROCID", "1"}, {"SLURM_STEP_NUM_TASKS", "2"}, {"SLURM_LOCALID", "1"}}, By::variables, 1, 2, 1));
  CHECK(is({{"SLURM_PROCID", "0"}, {"SLURM_LOCALID", "0"}}, By::alone, 0, 1, 0));  // a batch script
  CHECK(is({{"OMPI_COMM_WORLD_RANK", "0"}, {"OMPI_COMM_WORLD_SIZE", "1"}}, By::alone, 0, 1, 0));
  using Set = std::map<std::string, std::string>;
  const auto local_size = [](const std::string& list, const std::string& node) {
    const Environment environment({{"SLURM_PROCID", "1"},
                                   {"SLURM_STEP_NUM_TASKS", "20"},
                                   {"SLURM_STEP_TASKS_PER_NODE", list},
                                   {"SLURM_NODEID", node}});
    return launch().local_size;
  };
  CHECK(local_size("8(x2),4", "0") == 8);
  CHECK(local_size("8(x2),4", "1") == 8);
  CHECK(local_size("8(x2),4", "2") == 4);
  CHECK(local_size("20", "0") == 20);
  CHECK(local_size("20", "1") == 1);  // no such node: as if nothing were said
  for (const Set& set :
       {Set{{"RANK", "4"}, {"WORLD_SIZE", "4"}}, Set{{"WORLD_SIZE", "4"}}, Set{{"RANK", "one"}, {"WORLD_SIZE", "4"}}}) {
    const Environment environment(set);
    CHECK_THROWS_AS(launch(), UsageError);
  }
}
