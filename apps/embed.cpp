// csml embed: features of a data set into a safetensors file: features [N, D] f32, labels [N] i64 (-1: none).
#include <chrono>

#include "apps/feature_source.h"
#include "engine/safetensors.h"

namespace csml {
namespace {

struct Options : DataOptions {
  std::string out;
  bool l2_normalise = false;
};

int run(const Options& o) {
  start(o.common);
  const auto begin = std::chrono::steady_clock::now();
  const auto device = Device::open(o.source.device);
  const auto data = open_dataset(o.data);
  const FeatureSource source(*device, o.source, *data);
  const Features features = source.extract(*data, "features", o.l2_normalise);
  const std::vector<float> values = features.values.host<float>();
  const std::vector<int64_t> labels(features.labels.begin(), features.labels.end());
  const std::vector<HostArray> arrays{
      {"features", DType::f32, features.values.shape(), values.data()},
      {"labels", DType::i64, Shape{static_cast<int64_t>(labels.size())}, labels.data()}};
  write_safetensors(o.out, arrays,
                    {{"data", o.data},
                     {"protocol", source.protocol()},
                     {"made_by", json_line(source.describe())},
                     {"l2_normalised", o.l2_normalise ? "true" : "false"},
                     {"classes", json_line(data->class_names())}});

  nlohmann::json json = source.describe();
  json.update({{"task", "embed"},
               {"out", o.out},
               {"data", o.data},
               {"n", data->size()},
               {"dim", features.values.shape()[1]},
               {"l2_normalised", o.l2_normalise},
               {"bad_images", features.bad_images},
               {"protocol", source.protocol()},
               {"seconds", std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count()}});
  answer(o.common, json,
         cat("{}: features {} and labels of {}; {}\n", o.out, features.values.shape().text(), data->describe(),
             source.protocol()));
  return 0;
}

}  // namespace

Command embed_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  add_data_options(app, *o, "q");
  app.add_option("--out", o->out, "File to write: features [N, D] f32, labels [N] i64")
      ->type_name("FILE.safetensors")
      ->required();
  app.add_flag("--l2-normalise", o->l2_normalise, "Rows of unit length");
  app.footer("Example: csml embed --checkpoint runs/demo --data folder:DIR --out features.safetensors");
  return [o] { return run(*o); };
}

}  // namespace csml
