// Configuration: the table of keys, precedence, messages, round trips, presets.
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <set>

#include "apps/config.h"
#include "apps/keys.h"
#include "apps/presets.h"
#include "apps/run_folder.h"
#include "csml/method/resolve.h"
#include "engine/file.h"
#include "engine/nearest.h"
// After the project's headers: doctest's CHECK replaces that of kernels/check.h from here on.
#include <doctest/doctest.h>

namespace csml {
namespace {

template <class F>
std::string usage_error(F&& f) {
  try {
    f();
  } catch (const UsageError& e) { return e.what(); }
  return "no error";
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

/// One value through --set, resolved.
Config with(const std::vector<std::string>& assignments) {
  ConfigBuilder builder;
  for (const std::string& assignment : assignments) builder.set_assignment(assignment);
  return builder.build().config;
}

/// A variable of the environment for the time of a scope.
class Environment {
 public:
  Environment(std::string name, const std::string& value) : name_(std::move(name)) {
    setenv(name_.c_str(), value.c_str(), 1);
  }
  ~Environment() { unsetenv(name_.c_str()); }
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;

 private:
  std::string name_;
};

std::filesystem::path scratch_folder(const std::string& name) {
  const auto folder = std::filesystem::temp_directory_path() / cat("csml_config_test_{}_{}", name, ::getpid());
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  return folder;
}

}  // namespace

TEST_CASE("every key has one name, a section and a line of documentation") {
  Config config;
  std::set<std::string> names;
  const std::set<std::string> sections{"data",     "augment", "model", "method", "optimizer",
                                       "schedule", "train",   "eval",  "comm"};
  for (const ConfigKey& key : config_keys(config)) {
    CHECK_MESSAGE(names.insert(key.name).second, key.name);
    CHECK_MESSAGE(!key.help.empty(), key.name);
    const std::string section = key.name.substr(0, key.name.find('.'));
    CHECK_MESSAGE(sections.contains(section), key.name);
  }
  CHECK(names.size() > 70);
  for (const char* key : {"train.checkpoint_every_steps", "data.workers", "method.levels", "method.alignment",
                          "method.neighbors", "method.refresh_epochs", "schedule.lr", "augment.scale_min"})
    CHECK_MESSAGE(names.contains(key), key);
}

TEST_CASE("the reference has a row for every key, without empty cells") {
  const std::string page = keys_markdown();
  Config config;
  for (const ConfigKey& key : config_keys(config)) CHECK_MESSAGE(contains(page, "| `" + key.name + "` | "), key.name);
  CHECK(!contains(page, "|  |"));
  CHECK(contains(page, "| `method.name` | `csml` | csml or moco or simclr or byol or mocov3 | – | "));
  CHECK(contains(page,
                 "| `method.warmup_epochs` | `-1` | whole number: -1 (max(1, round(0.055 train.epochs))) or at "
                 "least 0 | epochs | "));
  CHECK(contains(page, "Images per step, of all processes together; flag `--batch-size` |"));
  CHECK(keys_json("method.queue").size() == 1);
  CHECK(keys_json("comm").size() == 2);
  CHECK(contains(usage_error([] { keys_text("metod"); }), "no such key or section; did you mean method?"));
  for (const KeyFlag& flag : key_flags()) CHECK_MESSAGE(!key_help(flag.key).empty(), flag.flag);
}

TEST_CASE("what a row of the table allows is what is checked") {
  const auto values = [](Allowed allowed, std::initializer_list<double> good, std::initializer_list<double> bad) {
    double x = 0;
    const std::vector<ConfigKey> keys{{"a.b", &x, std::move(allowed), "", ""}};
    for (const double value : good) {
      x = value;
      CHECK(usage_error([&] { check_values(keys); }) == "no error");
    }
    for (const double value : bad) {
      x = value;
      CHECK(usage_error([&] { check_values(keys); }) ==
            cat("a.b must be {}, got {}", allowed_text(keys[0].allowed), value));
    }
  };
  const double nan = std::nan("");
  values({.least = 1}, {1, 2}, {0.5, nan});
  values({.least = 0, .above = true}, {0.1}, {0, -1, nan});
  values({.least = 0, .most = 1}, {0, 1}, {-0.1, 1.1, nan});
  values({.least = 0, .most = 1, .below = true}, {0, 0.9}, {1, nan});
  values({.numbers = {18, 34}}, {18, 34}, {20});
  values(Allowed{.least = 2}.or_special(0, "all"), {0, 2}, {1, -1});
  CHECK(allowed_text({.least = 0, .most = 1, .below = true}) == "in [0, 1)");
  CHECK(allowed_text({.least = 0, .most = 1, .above = true}) == "in (0, 1]");
  CHECK(allowed_text({.numbers = {18, 34, 50}}) == "18, 34 or 50");
  CHECK(allowed_text(Allowed{.least = 0}.or_special(0, "all")) == "0 (all) or more");
  CHECK(allowed_text(Allowed{.least = 2}.or_special(0, "all")) == "0 (all) or at least 2");
  CHECK(allowed_text({}).empty());

  // Every bound of the table itself: the bound holds or not as it says, and what lies beyond is refused by name.
  Config config;
  for (const ConfigKey& key : config_keys_of_methods(config)) {
    INFO(key.name);
    const auto refused = [&](double value) {
      ConfigBuilder builder;
      builder.set(key.name, cat("{}", value), "test");
      return contains(usage_error([&] { builder.build(); }), key.name + " must be");
    };
    const bool number = std::holds_alternative<int*>(key.value) || std::holds_alternative<int64_t*>(key.value) ||
                        std::holds_alternative<double*>(key.value) || std::holds_alternative<float*>(key.value);
    if (!number || !key.allowed.numbers.empty()) continue;
    if (std::isfinite(key.allowed.least)) {
      CHECK(refused(key.allowed.least - (key.allowed.special == key.allowed.least - 1 ? 2 : 1)));
      CHECK(refused(key.allowed.least) == key.allowed.above);
    }
    if (std::isfinite(key.allowed.most)) {
      CHECK(refused(key.allowed.most + 1));
      CHECK(refused(key.allowed.most) == key.allowed.below);
    }
  }
}

TEST_CASE("defaults are MoCo v2 on ImageNet, and resolve derives rate and warm-up") {
  const Config config = with({});
  CHECK(config.schedule.base_lr == doctest::Approx(0.03));
  CHECK(config.method.warmup_epochs == 11);  // the released code's epochs 0 … 10 of 200
  CHECK(config.schedule.epochs == 200);
  CHECK(with({"train.batch_size=128"}).schedule.base_lr == doctest::Approx(0.015));
  CHECK(with({"train.epochs=20"}).method.warmup_epochs == 1);
  CHECK(with({"train.epochs=3"}).method.warmup_epochs == 1);
  CHECK(with({"train.epochs=3", "method.warmup_epochs=0"}).method.warmup_epochs == 0);
}

TEST_CASE("every type is read from text") {
  CHECK(with({"method.shuffle=false"}).method.shuffle == false);
  CHECK(with({"model.head_mlp=0"}).model.head_mlp == false);
  CHECK(with({"train.seed=9223372036854775807"}).train.seed == 9223372036854775807u);
  CHECK(with({"method.queue=5000000000"}).method.queue == 5000000000);
  CHECK(with({"method.temperature=1e-1"}).method.temperature == doctest::Approx(0.1));
  CHECK(with({"method.temperature=1"}).method.temperature == 1.0);  // a whole number where a number is wanted
  CHECK(with({"augment.scale_min=0.3"}).augment.scale_min == 0.3f);
  CHECK(with({"data.train=folder:/a=b?limit=3"}).data.train == "folder:/a=b?limit=3");
  CHECK(with({"data.train=\"quoted\""}).data.train == "quoted");
  CHECK(with({"method.terms=q,m"}).method.terms == std::vector<std::string>{"q", "m"});
  CHECK(with({"method.terms=[\"p\"]"}).method.terms == std::vector<std::string>{"p"});
  CHECK(with({"method.weights=0.6,0.4"}).method.weights == std::vector<double>{0.6, 0.4});
  CHECK(with({"schedule.milestones=[60, 80]"}).schedule.milestones == std::vector<double>{60, 80});
  CHECK(with({"schedule.milestones="}).schedule.milestones.empty());
  CHECK(with({"augment.mean=0.5,0.4,0.3"}).augment.mean[1] == 0.4f);
}

TEST_CASE("a wrong value is refused by name, with the place") {
  const auto refused = [](const std::string& assignment) { return usage_error([&] { with({assignment}); }); };
  CHECK(contains(refused("train.epochs=many"), "--set: train.epochs must be a whole number"));
  CHECK(contains(refused("train.epochs=1.5"), "train.epochs must be a whole number"));
  CHECK(contains(refused("train.epochs=3000000000"), "below 2^31"));
  CHECK(contains(refused("train.seed=-1"), "at least 0"));
  CHECK(contains(refused("train.seed=18446744073709551615"), "below 2^63"));  // what TOML can hold
  CHECK(contains(refused("method.shuffle=maybe"), "method.shuffle must be true or false"));
  CHECK(contains(refused("method.temperature=warm"), "method.temperature must be a number"));
  CHECK(contains(refused("method.temperature=inf"), "method.temperature"));
  CHECK(contains(refused("method.weights=0.5,x"), "method.weights must be a list of numbers"));
  CHECK(contains(refused("augment.std=[]"), "1 to 4 numbers"));
  CHECK(contains(refused("train.epochs"), "section.key=value"));
  CHECK(contains(refused("data.train=folder:caf\xE9"), "the value of data.train is not UTF-8 text"));
  CHECK(contains(refused("train.epochs=\xFF"), "the value of train.epochs is not UTF-8 text"));

  const std::string text = "[train]\nepochs = 3\nbatch_size = \"big\"\n";
  CHECK(contains(usage_error([&] { ConfigBuilder().add_toml(text, "a.toml"); }),
                 "a.toml:3:14: train.batch_size must be a whole number"));
  CHECK(contains(usage_error([&] { ConfigBuilder().add_toml("[train]\nepochs = \n", "a.toml"); }), "a.toml:2:"));
  for (const char* broken :
       {"[&", "[\r", "[train]\n[&x]\n", "[\xc2\xaa]\n", "\xc2\xaa = 1\n", "[train]\nepochs\xc2\xa0= 1\n"})
    CHECK(contains(usage_error([&] { ConfigBuilder().add_toml(broken, "a.toml"); }), "a.toml:"));
  ConfigBuilder accents;
  accents.add_toml(
      "# caf\xc3\xa9\n[data]\ntrain = \"folder:/donn\xc3\xa9"
      "es/\xd1\x84\xd0\xbe\xd1\x82\xd0\xbe\"\n",
      "a.toml");
  CHECK(accents.build().config.data.train ==
        "folder:/donn\xc3\xa9"
        "es/\xd1\x84\xd0\xbe\xd1\x82\xd0\xbe");
  CHECK(contains(usage_error([&] { ConfigBuilder().add_toml("[train]\nepochs = 2000-01-01\n", "a.toml"); }),
                 "train.epochs cannot hold a value of this type"));
}

TEST_CASE("an unknown key is answered with the nearest one") {
  const auto refused = [](const std::string& assignment) { return usage_error([&] { with({assignment}); }); };
  CHECK(contains(refused("train.epoch=3"), "unknown key train.epoch; did you mean train.epochs?"));
  CHECK(contains(refused("epochs=3"), "did you mean train.epochs?"));
  CHECK(contains(refused("train.temperature=3"), "did you mean method.temperature?"));
  CHECK(contains(refused("method.temprature=3"), "did you mean method.temperature?"));
  CHECK(contains(refused("zzzzzz.qqqqqqqq=3"), "--help-keys"));
  CHECK(contains(usage_error([] { ConfigBuilder().add_toml("[train]\n\nbatchsize = 3", "a.toml"); }),
                 "a.toml:3:1: unknown key train.batchsize; did you mean train.batch_size?"));
  CHECK(contains(usage_error([] { ConfigBuilder().add_toml("[trian]\nepochs = 3", "a.toml"); }),
                 "unknown section [trian]; did you mean [train]?"));
  CHECK(contains(usage_error([] { ConfigBuilder().add_toml("epochs = 3", "a.toml"); }),
                 "did you mean epochs in [train]?"));
  CHECK(contains(usage_error([] { ConfigBuilder().add_preset("cifar10-r81"); }), "did you mean cifar10-r18?"));
  CHECK(nearest_word("chekpoint", {"checkpoint", "train"}) == "checkpoint");
  CHECK(nearest_word("abc", {"xyzxyz"}).empty());
}

TEST_CASE("default < preset < file < environment < flag, and the origin of each value is kept") {
  ConfigBuilder builder;
  const auto epochs = [&] { return builder.build().config.train.epochs; };
  const auto origin = [&] { return builder.build().origin.at("train.epochs"); };
  CHECK(epochs() == 200);
  CHECK(origin() == "default");
  builder.add_preset("cifar10-small");
  const int of_preset = epochs();
  CHECK(of_preset != 200);
  CHECK(origin() == "preset cifar10-small");
  builder.add_toml("[train]\nepochs = 7\n", "run.toml");
  CHECK(epochs() == 7);
  CHECK(origin() == "run.toml:2");
  {
    const Environment variable("CSML_TRAIN_EPOCHS", "8");
    builder.add_environment();
  }
  CHECK(epochs() == 8);
  CHECK(origin() == "environment CSML_TRAIN_EPOCHS");
  builder.set("train.epochs", "9", "flag --epochs");
  CHECK(epochs() == 9);
  CHECK(origin() == "flag --epochs");
  CHECK(builder.build().origin.at("method.queue") == "preset cifar10-small");
  CHECK(contains(builder.build().origin.at("method.warmup_epochs"), "derived"));
}

TEST_CASE("the environment's other CSML_ variables are left alone, misspelt keys are not") {
  const Environment eager("CSML_EAGER", "1"), data("CSML_DATA", "/somewhere"), binary("CSML_BIN", "csml");
  ConfigBuilder().add_environment();
  const Environment wrong("CSML_TRAIN_EPOCH", "3");
  CHECK(contains(usage_error([] { ConfigBuilder().add_environment(); }), "did you mean CSML_TRAIN_EPOCHS?"));
}

TEST_CASE("values that cannot work together are refused by name") {
  const auto refused = [](const std::vector<std::string>& a) { return usage_error([&] { with(a); }); };
  CHECK(contains(refused({"train.batch_size=100"}), "multiple of method.bn_group_size"));
  CHECK(refused({"train.batch_size=100", "method.bn_group_size=0"}) == "no error");
  CHECK(contains(refused({"method.bn_group_size=1"}), "method.bn_group_size"));
  CHECK(contains(refused({"method.queue=0"}), "method.queue"));
  CHECK(contains(refused({"method.temperature=0"}), "method.temperature"));
  CHECK(contains(refused({"method.name=swav"}), "csml or moco or simclr or byol or mocov3"));
  CHECK(contains(refused({"method.base=csml"}), "method.base"));
  CHECK(contains(refused({"method.directions=3"}), "0 (as the base is published) or 1 or 2"));
  CHECK(contains(refused({"method.momentum_schedule=step"}), "constant or cosine"));
  CHECK(contains(refused({"method.form=sum"}), "csml or out or in or mil"));
  CHECK(contains(refused({"method.queue_filter=-1"}), "method.queue_filter"));
  CHECK(contains(refused({"method.second_blur_p=1.5"}), "method.second_blur_p"));
  CHECK(contains(refused({"method.partner_negatives=true"}), "method.partner_negatives"));
  CHECK(
      contains(refused({"method.base=simclr", "method.terms=q", "method.weights=1,0", "method.partner_negatives=true"}),
               "with a partner"));
  CHECK(contains(refused({"method.key_gradient=false"}), "method.key_gradient"));
  CHECK(refused({"method.levels=res4,res5"}) == "no error");
  CHECK(contains(refused({"method.levels=res5,res5"}), "twice"));
  CHECK(contains(refused({"method.levels=res4,res5", "method.level_weights=1"}), "as many entries"));
  CHECK(contains(refused({"method.levels=res4,res5", "method.alignment=patch", "method.patch_window=15"}), "larger"));
  CHECK(contains(refused({"method.name=simclr", "method.alignment=patch"}), "needs a base with a momentum encoder"));
  CHECK(contains(refused({"method.crop_sizes=96,64", "method.crop_counts=1"}), "as many entries"));
  CHECK(contains(refused({"method.crop_sizes=96.5"}), "whole numbers"));
  CHECK(contains(refused({"method.crop_sizes=96", "method.crop_counts=0"}), "at least 1"));
  CHECK(contains(refused({"method.crop_weights=1"}), "two weights"));
  CHECK(contains(refused({"model.head_bn=some"}), "auto or none or hidden or all"));
  CHECK(contains(refused({"model.level_blocks=0"}), "in [1, 8]"));
  CHECK(contains(refused({"method.levels=res6"}), "method.levels must be"));
  CHECK(contains(refused({"method.alignment=line"}), "global or patch or patch-lite"));
  CHECK(contains(refused({"method.partner=friend"}), "neighbor or random or labels"));
  CHECK(contains(refused({"method.terms=q,q"}), "twice"));
  CHECK(contains(refused({"method.terms=x"}), "q or p or m"));
  CHECK(contains(refused({"method.terms="}), "at least one"));
  CHECK(contains(refused({"method.weights=1"}), "two weights"));
  CHECK(contains(refused({"method.weights=0,0"}), "two weights"));
  CHECK(contains(refused({"method.warmup_weights=1,-1"}), "method.warmup_weights"));
  CHECK(contains(refused({"augment.crop_size=4"}), "in [8, 4096]"));
  CHECK(contains(refused({"augment.flip_p=2"}), "flip_p"));
  CHECK(contains(refused({"model.depth=20"}), "18, 34, 50 or 101"));
  CHECK(contains(refused({"model.stem=tiny"}), "imagenet or cifar"));
  CHECK(contains(refused({"train.precision=half"}), "fp32 or bf16 or fp16"));
  CHECK(refused({"train.precision=bf16"}) == "no error");
  CHECK(contains(refused({"train.loss_scale=1000"}), "power of two"));
  CHECK(contains(refused({"train.loss_scale_min=0"}), "power of two"));
  CHECK(contains(refused({"train.loss_scale=4", "train.loss_scale_min=8"}), "train.loss_scale must be in"));
  CHECK(contains(refused({"train.loss_scale_interval=0"}), "at least 1"));
  CHECK(contains(refused({"train.device=tpu"}), "train.device"));
  CHECK(refused({"train.device=cuda:3"}) == "no error");
  CHECK(contains(refused({"schedule.warmup_epochs=200"}), "below train.epochs"));
  CHECK(contains(refused({"eval.resize=100"}), "eval.resize"));
}

TEST_CASE("JSON and TOML round trips keep every value") {
  const Config config = with({"train.seed=9223372036854775807", "augment.mean=0.1,0.2,0.3", "method.terms=m,q",
                              "data.train=folder:/a \"b\" # c", "schedule.milestones=60,80", "augment.scale_min=0.1",
                              "optimizer.weight_decay=5e-4", "method.shuffle=false"});
  const nlohmann::json json = to_json(config);
  CHECK(json["augment"]["scale_min"].dump() == "0.1");  // a float by its own shortest text
  CHECK(to_json(config_from_json(json)) == json);
  CHECK(to_json(config_from_json(nlohmann::json::parse(json.dump()))) == json);

  const std::string text = config_toml({config, {{"train.seed", "flag --seed\nx"}}});
  CHECK(contains(text, "# flag --seed x\n"));
  ConfigBuilder builder;
  const Config small = with({"train.seed=7", "data.train=folder:/a \"b\" # c", "method.weights=1,0.25"});
  builder.add_toml(config_toml({small, {}}), "config.toml");
  CHECK(to_json(builder.build().config) == to_json(small));

  nlohmann::json unknown = json;
  unknown["train"]["nonsense"] = 1;
  CHECK(contains(usage_error([&] { config_from_json(unknown); }), "train.nonsense"));
}

TEST_CASE("every preset resolves, says where it comes from, and runs MoCo as well") {
  std::set<std::string> names;
  for (const Preset& preset : presets()) {
    INFO(preset.name);
    names.insert(preset.name);
    CHECK(contains(preset.text, "# source: "));
    CHECK(contains(preset.text, "# cost: "));
    ConfigBuilder builder;
    builder.add_preset(preset.name);
    const Config c = builder.build().config;
    if (c.train.batch_size > 1024) {  // for many processes: groups may span them, and no key travels to be permuted
      CHECK((c.method.bn_group_size > 0 || c.method.bn_sync));
      CHECK((c.method.directions == 1 || !c.method.shuffle));
    }
    builder.set("method.name", "moco", "flag --method");
    CHECK(builder.build().config.method.name == "moco");
    CHECK(contains(preset_list(), preset.name + "\n"));
  }
  for (const char* name : {"fashion-mnist-cpu",
                           "cifar10-small",
                           "cifar10-r18",
                           "cifar100-r18",
                           "imagenet100-r18",
                           "imagenet-r50-200ep",
                           "moco-v2-imagenet-r50-200ep",
                           "imagenet-r50-800ep-multicrop",
                           "stl10-r18",
                           "cifar10-r18-moco",
                           "cifar10-r18-simclr",
                           "cifar10-r18-byol",
                           "cifar10-r18-mocov3",
                           "cifar100-r18-moco",
                           "cifar100-r18-simclr",
                           "cifar100-r18-byol",
                           "cifar100-r18-mocov3",
                           "simclr-imagenet-r50-100ep",
                           "byol-imagenet-r50-300ep",
                           "mocov3-imagenet-r50-100ep",
                           "own-images-cpu",
                           "own-images"})
    CHECK_MESSAGE(names.contains(name), name);
}

TEST_CASE("the released CsMl experiment is the preset, value by value") {
  ConfigBuilder builder;
  builder.add_preset("imagenet-r50-200ep");
  const Config c = builder.build().config;
  CHECK(c.method.name == "csml");
  CHECK(c.method.queue == 65536);
  CHECK(c.method.momentum == 0.999);
  CHECK(c.method.temperature == 0.2);
  CHECK(c.method.neighbors == 5);
  CHECK(c.method.refresh_epochs == 5);
  CHECK(c.method.warmup_epochs == 11);
  CHECK(c.method.weights == std::vector<double>{0.5, 0.5});
  CHECK(c.schedule.base_lr == doctest::Approx(0.03));
  CHECK(c.schedule.per_epoch);
  CHECK(c.train.batch_size / c.method.bn_group_size == 8);
}

TEST_CASE("a run is continued with the same method and data, and refused by the key that differs") {
  const auto folder = scratch_folder("resume");
  CHECK(!holds_run(folder));
  ConfigBuilder builder;
  builder.set_assignment("train.epochs=5");
  write_text_file(folder / "config.toml", config_toml(builder.build()));
  write_text_file(folder / "notes.txt", "mine");
  CHECK(holds_run(folder));
  const auto differs = [&](const std::string& assignment) -> std::string {
    ConfigBuilder other;
    other.set_assignment("train.epochs=5");
    other.set_assignment(assignment);
    try {
      check_resumable(folder, other.build().config);
    } catch (const Error& e) { return e.what(); }
    return "no error";
  };
  for (const char* harmless : {"data.workers=7", "train.log_every_steps=3", "train.checkpoint_every_steps=9",
                               "data.train=moved", "train.max_steps=4", "eval.knn_every_epochs=0"})
    CHECK_MESSAGE(differs(harmless) == "no error", harmless);
  CHECK(contains(differs("method.temperature=0.1"), "method.temperature = 0.2, asked is 0.1"));
  CHECK(contains(differs("train.epochs=6"), "train.epochs"));
  CHECK(contains(differs("model.depth=18"), "model.depth"));
  CHECK(contains(differs("train.seed=1"), "train.seed"));
  CHECK(contains(differs("augment.flip_p=0"), "augment.flip_p"));
  clear_run(folder);
  CHECK(!holds_run(folder));
  CHECK(std::filesystem::exists(folder / "notes.txt"));  // not a run's file: kept
  std::filesystem::remove_all(folder);
}

TEST_CASE("a command line is kept so that a shell reads it back") {
  CHECK(shell_line({"csml", "--data", "idx:/a?split=test", "it's", ""}) ==
        "csml --data 'idx:/a?split=test' 'it'\\''s' ''");
}

}  // namespace csml
