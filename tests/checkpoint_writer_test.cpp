// The writer's thread: one write at a time, failures told and tried again, the last one waited for.
#include "engine/checkpoint_writer.h"

#include <atomic>
#include <future>

#include "tests/files.h"

using namespace csml;

namespace {

/// A write that waits for leave to go on.
struct Gate {
  std::promise<void> opens;
  std::shared_future<void> open = opens.get_future().share();
  CheckpointWriter::Write write(const std::string& folder) {
    return [open = open, folder] {
      open.wait();
      return std::filesystem::path(folder);
    };
  }
};

CheckpointWriter::Write failing(std::atomic<int>& tries, int failures) {
  return [&tries, failures]() -> std::filesystem::path {
    if (++tries <= failures) throw Error(cat("no space left, try {}", tries.load()));
    return "written";
  };
}

}  // namespace

TEST_CASE("writer: start() returns while the write goes on; acquire() and finish() wait for it") {
  CheckpointWriter writer(3600);
  Gate gate;
  CHECK(writer.acquire() < 3600);
  std::atomic<bool> written{false};
  writer.start(7, [&, write = gate.write("a")] {
    const std::filesystem::path folder = write();
    written = true;
    return folder;
  });
  CHECK(writer.outcomes().empty());  // it cannot have ended: its gate is shut
  CHECK(contains(error_of([&] { writer.start(8, gate.write("b")); }), "step 8 while that of step 7"));
  // The gate opens late, or as soon as acquire() has returned without waiting for it.
  std::promise<void> returned;
  std::thread opener([&, early = returned.get_future()] {
    early.wait_for(std::chrono::milliseconds(50));
    gate.opens.set_value();
  });
  const double waited = writer.acquire();
  CHECK(written);
  CHECK(waited > 0);
  returned.set_value();
  opener.join();
  const auto outcomes = writer.outcomes();
  REQUIRE(outcomes.size() == 1);
  CHECK(outcomes[0].step == 7);
  CHECK(outcomes[0].folder == "a");
  CHECK(outcomes[0].error.empty());
  CHECK(writer.outcomes().empty());
  writer.finish();  // nothing to wait for
}

TEST_CASE("writer: a failed write is tried again until it succeeds") {
  CheckpointWriter writer(0.001);
  std::atomic<int> tries{0};
  writer.acquire();
  writer.start(3, failing(tries, 2));
  while (tries < 3) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  writer.acquire();
  const auto outcomes = writer.outcomes();
  REQUIRE(outcomes.size() == 3);
  for (const auto& o : outcomes) CHECK(o.step == 3);
  CHECK(outcomes[0].error == "no space left, try 1");
  CHECK(outcomes[1].error == "no space left, try 2");
  CHECK(outcomes[2].folder == "written");
}

TEST_CASE("writer: a newer write takes the place of one that waits for its next try") {
  CheckpointWriter writer(3600);
  std::atomic<int> old_tries{0}, new_tries{0};
  writer.acquire();
  writer.start(3, failing(old_tries, 100));
  writer.acquire();  // returns though the first one is not written
  writer.start(4, failing(new_tries, 0));
  writer.finish();
  CHECK(old_tries == 1);
  const auto outcomes = writer.outcomes();
  REQUIRE(outcomes.size() == 2);
  CHECK(outcomes[1].step == 4);
  CHECK(outcomes[1].folder == "written");
}

TEST_CASE("writer: finish() tells a failure and gives it up; the destructor waits for a write and drops a retry") {
  std::atomic<int> tries{0}, started{0};
  {
    CheckpointWriter writer(3600);
    writer.acquire();
    writer.start(1, failing(tries, 100));
    CHECK(error_of([&] { writer.finish(); }) == "no space left, try 1");
    writer.finish();  // given up
    writer.acquire();
    writer.start(2, failing(tries, 100));
    writer.acquire();
    writer.start(3, [&]() -> std::filesystem::path {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      ++started;
      throw Error("too late to be tried again");
    });
  }
  CHECK(started == 1);
  CHECK(tries == 2);
}
