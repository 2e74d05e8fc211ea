// What csml pretrain --preset auto chooses: for machines and images that are made up, and that every choice is a valid
// configuration.
#include "apps/chooser.h"

#include <algorithm>
#include <map>

#include "apps/config.h"
// After the project's headers: doctest's CHECK replaces that of kernels/check.h from here on.
#include <doctest/doctest.h>

using namespace csml;

namespace {

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

/// Two thousand photographs on two cores.
Facts photographs() {
  Facts f;
  f.images = 2000;
  f.short_side = 224;
  f.decode_seconds = 0.002;
  f.cores = 2;
  f.memory = uint64_t{8} << 30;
  f.flop_per_second = 60e9;
  f.hours = 0.5;
  return f;
}

std::map<std::string, std::string> values(const Facts& facts) {
  const Chosen chosen = choose(facts);
  return {chosen.values.begin(), chosen.values.end()};
}

int number(const Facts& facts, const char* key) { return std::stoi(values(facts).at(key)); }

Config config_of(const Facts& facts) {
  ConfigBuilder builder;
  for (const auto& [key, value] : choose(facts).values) builder.set(key, value, "chosen");
  return builder.build().config;
}

}  // namespace

TEST_CASE("two thousand photographs on two cores: a small network with a hundred passes in half an hour") {
  const Facts f = photographs();
  CHECK(number(f, "train.epochs") >= 100);
  CHECK(number(f, "augment.crop_size") == 64);
  CHECK(number(f, "model.width") <= 64);
  CHECK(values(f).at("method.name") == "moco");
  CHECK(values(f).at("train.precision") == "fp32");
  CHECK(choose(f).hours <= 0.5);
  CHECK(choose(f).warning.empty());
}

TEST_CASE("more time gives a larger network or more passes, never less of both") {
  double before = 0;
  for (const double hours : {0.25, 0.5, 1., 2., 8., 48.}) {
    Facts f = photographs();
    f.hours = hours;
    const Config c = config_of(f);
    const double work =
        step_flop(c.method.name, c.model.depth, c.model.stem, c.model.width, c.augment.crop_size) * c.train.epochs;
    CHECK(work >= before);
    before = work;
  }
}

TEST_CASE("a card gets the large network in bf16 and CsMl, where images and time are many") {
  Facts f = photographs();
  f.card = true;
  f.images = 100000;
  f.cores = 16;
  f.memory = uint64_t{80} << 30;
  f.flop_per_second = 150e12;
  f.hours = 100;
  CHECK(number(f, "model.depth") == 50);
  CHECK(number(f, "augment.crop_size") == 224);
  CHECK(values(f).at("train.precision") == "bf16");
  CHECK(values(f).at("method.name") == "csml");
  CHECK(number(f, "method.queue") <= 5000);
}

TEST_CASE("views are no larger than the images, and small images keep the resolution of their first layer") {
  Facts f = photographs();
  f.hours = 1000;
  f.short_side = 100;
  CHECK(number(f, "augment.crop_size") == 96);
  f.short_side = 28;
  CHECK(number(f, "augment.crop_size") == 28);
  CHECK(values(f).at("model.stem") == "cifar");
}

TEST_CASE("gray images get no jitter of colour") {
  Facts f = photographs();
  CHECK(!values(f).contains("augment.hue"));
  f.gray = true;
  CHECK(values(f).at("augment.hue") == "0.0");
}

TEST_CASE("little memory gives a smaller batch") {
  Facts f = photographs();
  f.images = 100000;
  f.hours = 1000;
  const int with_much = number(f, "train.batch_size");
  f.memory = uint64_t{1} << 30;
  CHECK(number(f, "train.batch_size") < with_much);
}

TEST_CASE("every choice is a valid configuration whose batch and queue fit the images") {
  for (const int64_t images : {16, 17, 63, 100, 1000, 50000, 1300000})
    for (const int side : {8, 28, 32, 64, 300})
      for (const bool card : {false, true})
        for (const double speed : {1e9, 1e11, 1e15}) {
          Facts f = photographs();
          f.images = images;
          f.short_side = side;
          f.card = card;
          f.flop_per_second = speed;
          CAPTURE(images);
          CAPTURE(side);
          const Config c = config_of(f);
          CHECK(c.train.batch_size <= images);
          CHECK(c.method.queue % c.train.batch_size == 0);
          CHECK(c.train.epochs >= 1);
          CHECK(c.data.workers >= 1);
        }
}

TEST_CASE("a time too short for the images is told, with one that is not") {
  Facts f = photographs();
  f.images = 1000000;
  CHECK(contains(choose(f).warning, "--hours"));
}

TEST_CASE("too few images are refused") {
  Facts f = photographs();
  f.images = 15;
  CHECK_THROWS_AS(choose(f), UsageError);
}

TEST_CASE("the choice is told in about a dozen lines, each with the flag that changes it") {
  const Chosen c = choose(photographs());
  for (const Reason& r : c.reasons) {
    CAPTURE(r.what);
    CHECK(contains(r.change, "--"));
    CHECK(!r.why.empty());
  }
  const std::string text = chosen_text(c);
  const auto lines = std::count(text.begin(), text.end(), '\n');
  CHECK(lines >= 8);
  CHECK(lines <= 14);
}
