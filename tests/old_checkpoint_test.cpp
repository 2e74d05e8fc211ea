// A checkpoint that 0.1.0 wrote is read: the run goes on as it did there, and the encoder is what it was.
//
// tests/golden/run_0.1.0/step_00000007 is one of a run of ten steps by 0.1.0 itself (commit 02767703, the last before
// 0.2.0's first change), which wrote one after every step; the numbers below stand in that run's metrics.jsonl.
#include "csml/training/saved_model.h"
#include "models/weights.h"
#include "tests/run_fixture.h"

// After the project's headers: doctest's CHECK replaces that of kernels/check.h from here on.
#include <doctest/doctest.h>

using namespace csml;
using namespace csml::test;

namespace {

const std::filesystem::path kOld = "tests/golden/run_0.1.0/step_00000007";

/// By step. Three steps on another machine, whose sums round otherwise, stay far nearer than this to them.
constexpr double kTolerance = 1e-3;
const std::map<int64_t, double> kLosses{{8, 3.96588397026062}, {9, 4.056791305541992}, {10, 4.074855327606201}};

}  // namespace

TEST_CASE("the files of 0.1.0 are whole, and its configuration is read with defaults for newer keys") {
  const Checkpoint checkpoint = open_checkpoint(kOld);
  CHECK(checkpoint.step == 7);
  const nlohmann::json& config = checkpoint.user.at("config");
  CHECK_FALSE(config.at("model").contains("trunk"));  // else this is no file of 0.1.0
  const Config read = config_from_json(config);
  CHECK(read.model.trunk == "resnet");
  CHECK(read.method.queue == 72);
  CHECK(read.train.epochs == 2);
}

TEST_CASE("an encoder of 0.1.0 has its weights") {
  const auto device = Device::open("cpu");
  for (const std::string which : {"q", "k"}) {
    const SavedModel saved = load_model(*device, kOld, which);
    CHECK(saved.step == 7);
    const SafetensorsFile file = open_checkpoint(kOld).model();
    int64_t compared = 0;
    for (const NamedArray& array : to_host(saved.encoder->params(), "encoder_" + which + ".")) {
      CHECK(file.read(array.name).data == array.data);
      compared += array.shape.size();
    }
    CHECK(compared > 10000);
  }
}

TEST_CASE("a run of 0.1.0 goes on as it did there") {
  const Folder folder;
  Config config = config_from_json(open_checkpoint(kOld).user.at("config"));
  resolve(config);  // what follows from the keys, such as the learning rate of this batch size
  const RunResult result = run(config, folder.path / "run", nullptr, {}, {}, kOld).result;
  CHECK(result.steps == 10);
  int64_t compared = 0;
  for (const nlohmann::json& line : metrics(folder.path / "run", "step")) {
    const auto expected = kLosses.find(line["step"].get<int64_t>());
    REQUIRE(expected != kLosses.end());
    CHECK(line["loss"].get<double>() == doctest::Approx(expected->second).epsilon(kTolerance));
    ++compared;
  }
  CHECK(compared == 3);
}
