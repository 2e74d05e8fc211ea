// The autograd engine itself: who gets which gradient, when memory goes, what is refused.
#include "engine/var.h"

#include "engine/ops.h"
#include "tests/test.h"

// After the project's headers: doctest's CHECK replaces that of kernels/check.h from here on.
#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

using namespace csml;

namespace {

struct Fixture {
  std::unique_ptr<Device> device = Device::open("cpu");

  Tensor tensor(std::vector<float> values) {
    return Tensor::from(*device, {static_cast<int64_t>(values.size())}, values);
  }
  /// A leaf whose gradient buffer starts as NaN: only an overwrite makes it a number.
  Var leaf(std::vector<float> values) {
    const Tensor value = tensor(std::move(values));
    return Var::leaf(value, Tensor::full(*device, value.shape(), NAN));
  }
  /// sum(x) as a scalar.
  Var sum(const Var& x) {
    float total = 0;
    for (float v : x.value().host<float>()) total += v;
    const Tensor ones = Tensor::full(*device, x.shape(), 1);
    return Var::op("sum", tensor({total}), {x}, [ones](const Tensor& dy, std::span<const Sink> dx) {
      if (dx[0]) backend(dy).axpy({.x = ones, .y = dx[0].tensor, .scale = dy, .write = dx[0].write});
    });
  }
  size_t in_use() const { return device->stats().in_use; }
};

/// What a probe saw of its sinks and gradients when its backward ran.
struct Seen {
  int calls = 0;
  std::vector<Write> writes;
  std::vector<float> dy, dy2;
};

/// The identity, which notes what it is given.
Var probe(const Var& x, Seen& seen) {
  Tensor y = like(x.value());
  backend(y).copy({.x = x.value(), .y = y});
  return Var::op("probe", y, {x}, [&seen](const Tensor& dy, std::span<const Sink> dx) {
    ++seen.calls;
    seen.dy = dy.host<float>();
    for (const Sink& sink : dx) {
      seen.writes.push_back(sink.write);
      if (sink) backend(dy).axpy({.x = dy, .y = sink.tensor, .write = sink.write});
    }
  });
}

/// The identity as an op that takes two gradients at once.
Var probe_of_sum(const Var& x, Seen& seen) {
  Tensor y = like(x.value());
  backend(y).copy({.x = x.value(), .y = y});
  return Var::op_of_sum("probe_of_sum", y, {x}, [&seen](const Tensor& dy, const Tensor& dy2, std::span<const Sink> dx) {
    ++seen.calls;
    seen.dy = dy.host<float>();
    if (dy2) seen.dy2 = dy2.host<float>();
    if (!dx[0]) return;
    backend(dy).axpy({.x = dy, .y = dx[0].tensor, .write = dx[0].write});
    if (dy2) backend(dy).axpy({.x = dy2, .y = dx[0].tensor, .write = Write::accumulate});
  });
}

std::string error_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& e) { return e.what(); }
  return "";
}

using Floats = std::vector<float>;

}  // namespace

TEST_CASE_FIXTURE(Fixture, "a leaf's first contribution overwrites, the next ones accumulate") {
  const Var x = leaf({1, 2, 3});
  Seen first, second, third;
  const Var a = probe(x, first), b = probe(x, second), c = probe(x, third);
  const Var y = add(add(scale(a, 2), scale(b, 30)), scale(c, 400));
  sum(y).backward();
  CHECK(x.grad().host<float>() == Floats{432, 432, 432});
  // Reverse creation order: the last probe comes first.
  CHECK(third.writes == std::vector<Write>{Write::overwrite});
  CHECK(second.writes == std::vector<Write>{Write::accumulate});
  CHECK(first.writes == std::vector<Write>{Write::accumulate});
  CHECK(x.grad_written());

  // A second pass adds; after mark_unwritten it starts again.
  sum(scale(x, 1000)).backward();
  CHECK(x.grad().host<float>() == Floats{1432, 1432, 1432});
  x.mark_unwritten();
  CHECK_FALSE(x.grad_written());
  sum(scale(x, 5)).backward();
  CHECK(x.grad().host<float>() == Floats{5, 5, 5});
}

TEST_CASE_FIXTURE(Fixture, "diamond: an interior value used two and three times") {
  for (const int uses : {1, 2, 3}) {
    const Var x = leaf({1, -1});
    Seen seen;
    const Var h = probe(x, seen);
    Var y = scale(h, 1);
    for (int i = 1; i < uses; ++i) y = add(y, scale(h, i == 1 ? 10.f : 100.f));
    sum(y).backward();
    const float expected = uses == 1 ? 1.f : uses == 2 ? 11.f : 111.f;
    CHECK(seen.calls == 1);  // once, with the complete gradient
    CHECK(seen.dy == Floats{expected, expected});
    CHECK(x.grad().host<float>() == Floats{expected, expected});
  }
}

TEST_CASE_FIXTURE(Fixture, "nested diamonds multiply") {
  Var x = leaf({1}), y = x;
  for (int i = 0; i < 20; ++i) y = add(y, y);
  CHECK(y.value().item() == 1048576.f);
  y.backward();
  CHECK(x.grad().item() == 1048576.f);
}

TEST_CASE_FIXTURE(Fixture, "an op of sum gets two gradients apart and adds the third to one of them") {
  for (const int uses : {1, 2, 3}) {
    const Var x = leaf({1, -1});
    Seen seen;
    const Var h = probe_of_sum(x, seen);
    Var y = scale(h, 1);
    for (int i = 1; i < uses; ++i) y = add(y, scale(h, i == 1 ? 10.f : 100.f));
    sum(y).backward();
    const float expected = uses == 1 ? 1.f : uses == 2 ? 11.f : 111.f;
    CHECK(seen.calls == 1);
    CHECK(seen.dy2.empty() == (uses == 1));
    CHECK(seen.dy[0] + (seen.dy2.empty() ? 0.f : seen.dy2[0]) == expected);
    CHECK(x.grad().host<float>() == Floats{expected, expected});
  }
}

TEST_CASE_FIXTURE(Fixture, "NoGrad and detach cut the graph") {
  const Var x = leaf({2});
  {
    const NoGrad outer;
    CHECK_FALSE(scale(x, 3).requires_grad());
    {
      const NoGrad inner;
      CHECK_FALSE(scale(x, 3).requires_grad());
    }
    CHECK_FALSE(scale(x, 3).requires_grad());  // the inner one gave back the outer's state
  }
  const Var y = scale(x, 3);
  CHECK(y.requires_grad());
  CHECK_FALSE(y.detach().requires_grad());
  CHECK(y.detach().value().item() == 6);
  sum(add(y, scale(y.detach(), 100))).backward();
  CHECK(x.grad().item() == 3);
}

TEST_CASE_FIXTURE(Fixture, "constants and unreached leaves stay untouched") {
  const Var x = leaf({1}), other = leaf({1}), constant(tensor({5}));
  const Var unused = scale(other, 2);  // part of a graph that the root does not see
  const Var y = add(scale(x, 2), constant);
  y.backward();
  CHECK(x.grad().item() == 2);
  CHECK_FALSE(other.grad_written());
  CHECK(std::isnan(other.grad().item()));
  // From a constant there is nothing to do.
  scale(constant, 2).backward();
  CHECK_FALSE(other.grad_written());
}

TEST_CASE_FIXTURE(Fixture, "backward of an op with one wanted input gets an empty sink for the other") {
  const Var x = leaf({1}), constant(tensor({5}));
  std::vector<bool> wanted;
  const Var y = Var::op("both", tensor({6}), {constant, x, Var()}, [&](const Tensor& dy, std::span<const Sink> dx) {
    for (const Sink& sink : dx) wanted.push_back(static_cast<bool>(sink));
    backend(dy).axpy({.x = dy, .y = dx[1].tensor, .write = dx[1].write});
  });
  y.backward();
  CHECK(wanted == std::vector<bool>{false, true, false});
  CHECK(x.grad().item() == 1);
}

TEST_CASE_FIXTURE(Fixture, "the seed scales every gradient and may be any scalar on the device") {
  const Var x = leaf({3, 4});
  const Tensor seed = tensor({0.5f});
  sum(scale(x, 8)).backward(seed);
  CHECK(x.grad().host<float>() == Floats{4, 4});
  CHECK(seed.item() == 0.5f);
}

TEST_CASE_FIXTURE(Fixture, "what backward refuses") {
  const Var x = leaf({3, 4});
  const Var y = sum(x);
  CHECK(error_of([&] { scale(x, 2).backward(); }).find("scalar") != std::string::npos);
  CHECK(error_of([&] { leaf({1}).backward(); }).find("leaf") != std::string::npos);
  CHECK(error_of([&] { Var().backward(); }) != "");
  CHECK(error_of([&] { Var().value(); }).find("empty") != std::string::npos);
  CHECK(error_of([&] { Var::leaf(tensor({1}), tensor({1, 2})); }).find("shape") != std::string::npos);
  y.backward();
  CHECK(error_of([&] { y.backward(); }).find("twice") != std::string::npos);
  // Through a part of the graph that an earlier pass used up.
  const Var shared = scale(x, 2);
  const Var one = sum(shared), two = sum(shared);
  one.backward();
  CHECK(error_of([&] { two.backward(); }).find("twice") != std::string::npos);
}

TEST_CASE_FIXTURE(Fixture, "an exception in a backward rule passes through") {
  const Var x = leaf({1});
  const Var y = Var::op("bad", tensor({1}), {scale(x, 1)},
                        [](const Tensor&, std::span<const Sink>) { throw Error("no gradient today"); });
  CHECK(error_of([&] { y.backward(); }) == "no gradient today");
}

TEST_CASE_FIXTURE(Fixture, "finished is called once for each reached leaf, after its last contribution") {
  const Var a = leaf({1}), b = leaf({1}), c = leaf({1}), unreached = leaf({1});
  // Creation order: a is used first and last, b in the middle; c only in the first op.
  Var y = add(scale(a, 2), scale(c, 3));
  y = add(y, scale(b, 10));
  y = add(y, scale(a, 100));
  std::vector<const void*> order;
  std::vector<float> at_call;
  y.backward({}, [&](const Var& leaf) {
    order.push_back(leaf.id());
    at_call.push_back(leaf.grad().item());
  });
  REQUIRE(order.size() == 3);
  CHECK(order[0] == b.id());  // created later, so complete earlier
  CHECK(std::count(order.begin(), order.end(), a.id()) == 1);
  CHECK(std::count(order.begin(), order.end(), c.id()) == 1);
  for (size_t i = 0; i < order.size(); ++i)
    CHECK(at_call[i] == (order[i] == a.id() ? 102.f : order[i] == b.id() ? 10.f : 3.f));
  CHECK(a.grad().item() == 102);

  // The same leaf twice in one op.
  int calls = 0;
  const Var d = leaf({1});
  add(d, d).backward({}, [&](const Var& leaf) {
    ++calls;
    CHECK(leaf.grad().item() == 2);
  });
  CHECK(calls == 1);
}

TEST_CASE_FIXTURE(Fixture, "memory goes while backward runs") {
  constexpr int64_t kCount = 1 << 16;
  constexpr size_t kBytes = kCount * sizeof(float);
  const size_t before = in_use();
  const Var x = Var::leaf(Tensor::full(*device, {kCount}, 1), Tensor::full(*device, {kCount}, NAN));
  constexpr int kLength = 16;
  std::vector<size_t> seen;
  Var y = x;
  for (int i = 0; i < kLength; ++i) {
    y = scale(y, 1.f);
    const Tensor saved = Tensor::full(*device, {kCount}, 0);  // an activation that only this node holds
    y = Var::op("keep", y.value(), {y}, [this, &seen, saved](const Tensor& dy, std::span<const Sink> dx) {
      seen.push_back(in_use());
      backend(dy).axpy({.x = dy, .y = dx[0].tensor, .write = dx[0].write});
    });
  }
  Var loss = sum(y);
  y = {};
  const size_t full = in_use() - before;
  CHECK(full >= 2 * kLength * kBytes);
  loss.backward();
  REQUIRE(seen.size() == kLength);
  for (size_t i = 1; i < seen.size(); ++i) CHECK(seen[i] <= seen[i - 1] - 2 * kBytes);  // output and saved activation
  loss = {};
  CHECK(in_use() - before == 2 * kBytes);  // the leaf and its gradient
}

TEST_CASE_FIXTURE(Fixture, "values that outlive backward keep no gradient") {
  const Var x = leaf({1, 2, 3});
  std::vector<Var> kept{scale(x, 2)};
  for (int i = 0; i < 5; ++i) kept.push_back(add(kept.back(), kept.front()));
  const Var loss = sum(kept.back());
  const size_t before = in_use();
  loss.backward();
  CHECK(in_use() <= before);
}

TEST_CASE_FIXTURE(Fixture, "a graph that is dropped without backward frees everything") {
  const Var x = leaf({1, 2, 3});
  const size_t before = in_use();
  {
    Var y = x;
    for (int i = 0; i < 100; ++i) y = add(y, scale(y, 2));
    CHECK(in_use() > before);
  }
  CHECK(in_use() == before);
}

TEST_CASE_FIXTURE(Fixture, "a chain of 10,000 ops runs backward and is dropped without overflowing the stack") {
  const Var x = leaf({1});
  const size_t before = in_use();
  {
    Var y = x;
    for (int i = 0; i < 10000; ++i) y = scale(y, 1);
  }
  CHECK(in_use() == before);
  Var y = x;
  for (int i = 0; i < 10000; ++i) y = scale(y, 1);
  y.backward();
  CHECK(x.grad().item() == 1);
  y = {};
  CHECK(in_use() == before);
}

TEST_CASE_FIXTURE(Fixture, "a graph of 1,000,000 nodes is dropped without overflowing the stack") {
  const Var x = leaf({1});
  const Tensor shared = tensor({2});  // the nodes are what costs, not their values
#ifdef NDEBUG
  constexpr int kNodes = 1000000;
#else
  constexpr int kNodes = 50000;  // sanitizers keep every node's memory apart
#endif
  const size_t before = in_use();
  const auto pass = [](const Tensor& dy, std::span<const Sink> dx) {
    if (dx[0]) backend(dy).axpy({.x = dy, .y = dx[0].tensor, .write = dx[0].write});
  };
  {
    Var chain = x, kept;
    for (int i = 0; i < kNodes; ++i) {
      chain = Var::op("pass", shared, {chain}, pass);
      if (i == kNodes / 2) kept = chain;
    }
    chain = {};  // the newer half goes, the older one is still in use
    CHECK(kept.requires_grad());
    Var y = Var::op("pass", shared, {kept}, pass);
    kept = {};
    y.backward();
    CHECK(x.grad().item() == 1);
  }
  {
    Var chain = x;  // each input twice: used up only with the second
    for (int i = 0; i < kNodes / 2; ++i) chain = Var::op("pass", shared, {chain, chain}, pass);
  }
  {
    Var chain = x;  // kept alive by what a rule captured, not as an input
    for (int i = 0; i < kNodes / 2; ++i) {
      const auto rule = [chain](const Tensor&, std::span<const Sink>) {};
      chain = Var::op("captured", shared, {x}, rule);
    }
  }
  CHECK(in_use() == before);
}

TEST_CASE_FIXTURE(Fixture, "the graph is independent of tensors that are renamed or overwritten by Var copies") {
  const Var x = leaf({2});
  Var y = scale(x, 3);
  const Var first = y;
  y = scale(y, 5);
  y = add(y, first);
  y.backward();
  CHECK(x.grad().item() == 18);
}

TEST_CASE("CSML_NAN=1 names the op that made a NaN") {
  // The switch is read once per process: a child of this one, which has not read it, looks for it.
  if (const char* set = std::getenv("CSML_NAN_TEST_CHILD"); set && std::string(set) == "1") {
    Fixture f;
    const Var fine = scale(f.leaf({1}), 2);
    CHECK(error_of([&] { scale(fine, INFINITY); }).find("result of op 'scale'") != std::string::npos);
    const Var y = Var::op("bad", f.tensor({1}), {fine}, [](const Tensor&, std::span<const Sink> dx) {
      backend(dx[0].tensor).fill({.y = dx[0].tensor, .value = NAN});
    });
    const std::string error = error_of([&] { y.backward(); });
    CHECK(error.find("gradient of op 'bad'") != std::string::npos);
    return;
  }
  {
    Fixture f;
    const Var fine = scale(f.leaf({1}), INFINITY);  // nobody looks
    const NanCheck check;
    CHECK(error_of([&] { scale(fine, 2); }).find("result of op 'scale'") != std::string::npos);
  }
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    ::setenv("CSML_NAN", "1", 1);
    ::setenv("CSML_NAN_TEST_CHILD", "1", 1);
    ::execl("/proc/self/exe", "var_test", "--test-case=CSML_NAN*", "--no-version", static_cast<char*>(nullptr));
    ::_exit(127);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
}
