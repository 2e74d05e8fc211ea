// csml import: torchvision-named weights into a checkpoint that every other command reads.
#include <filesystem>

#include "apps/command.h"
#include "apps/config.h"
#include "apps/feature_source.h"
#include "apps/run_folder.h"
#include "csml/saved_model.h"
#include "engine/checkpoint.h"
#include "engine/log.h"
#include "models/weights.h"

namespace csml {
namespace {

struct Options {
  CommonOptions common;
  std::string file, out, prefix;
  std::vector<std::string> set;
  bool prefix_given = false;
};

/// What stands before "layer1.0.conv1.weight": the one choice, or that of a query encoder among several.
std::string find_prefix(const SafetensorsFile& file) {
  const std::string tail = "layer1.0.conv1.weight";
  std::vector<std::string> found;
  for (const std::string& name : file.names())
    if (name.ends_with(tail)) found.push_back(name.substr(0, name.size() - tail.size()));
  if (found.empty())
    throw Error(cat("{}: no array named …layer1.0.conv1.weight: this is no torchvision ResNet", file.path().string()));
  for (const std::string& prefix : found)
    if (found.size() > 1 && prefix.find("encoder_q") != std::string::npos) return prefix;
  if (found.size() > 1)
    throw UsageError(
        cat("{} holds several networks; say which by --prefix: {}", file.path().string(), fmt::join(found, ", ")));
  return found.front();
}

/// The arrays under a prefix, without it. The head's come along only where it is a projection head of ours.
std::vector<NamedArray> read_network(const SafetensorsFile& file, const std::string& prefix, const Encoder& encoder,
                                     bool has_head) {
  std::vector<NamedArray> arrays;
  for (const std::string& name : file.names()) {
    if (!name.starts_with(prefix)) continue;
    const std::string plain = name.substr(prefix.size());
    if (plain.starts_with("fc.") && !has_head) continue;
    arrays.push_back(file.read(name));
    arrays.back().name = plain;
  }
  if (!has_head) {
    for (NamedArray& array : to_host(encoder.params(), ""))
      if (array.name.starts_with("fc.")) arrays.push_back(std::move(array));
  }
  return arrays;
}

int run(const Options& o) {
  start(o.common);
  const SafetensorsFile file = SafetensorsFile::open(o.file);
  if (holds_run(o.out)) throw Error(cat("{} holds a run already; give another --out", o.out));
  const std::string prefix = o.prefix_given ? o.prefix : find_prefix(file);
  int channels = 3;
  bool has_head = false;
  const ModelConfig model = recognise_model(file, prefix, &channels, &has_head);

  ConfigBuilder builder;
  Config stated_config;
  stated_config.augment = file_normalisation(file, {});
  const nlohmann::json stated = to_json(stated_config);
  for (const char* name : {"mean", "std"}) builder.set(cat("augment.{}", name), stated["augment"][name].dump(), o.file);
  if (model.stem == "cifar") {  // small images, seen as they are unless --set says otherwise
    for (const char* line : {"augment.crop_size=32", "eval.size=32", "eval.resize=0"}) builder.set_assignment(line);
  }
  for (const std::string& assignment : o.set) builder.set_assignment(assignment);
  ResolvedConfig resolved = builder.build();
  resolved.config.model = model;
  resolved.config.augment.channels = channels;

  const auto device = Device::open("cpu");
  const Encoder encoder(*device, model, channels, resolved.config.train.seed, false);
  const std::vector<NamedArray> arrays = read_network(file, prefix, encoder, has_head);
  std::vector<std::string> unused;
  try {
    unused = from_host(encoder.params(), arrays, "");
  } catch (const Error& e) { throw Error(cat("{}: {}", o.file, e.what())); }
  std::erase_if(unused, [](const std::string& name) { return name.ends_with("num_batches_tracked"); });
  if (!unused.empty()) log_warn(cat("{} arrays have no place in the network, first {}", unused.size(), unused[0]));

  std::vector<NamedArray> both = to_host(encoder.params(), "encoder_q.");
  for (NamedArray& array : to_host(encoder.params(), "encoder_k.")) both.push_back(std::move(array));
  CheckpointContent content;
  for (const NamedArray& a : both) content.model.push_back({a.name, a.dtype, a.shape, a.data.data()});
  content.model_metadata = {{"format", "pt"}};
  content.user = {{"config", to_json(resolved.config)}, {"in_channels", channels}, {"imported_from", o.file}};
  std::error_code error;
  std::filesystem::create_directories(o.out, error);
  if (error) throw Error(cat("cannot create the folder {}: {}", o.out, error.message()));
  const std::filesystem::path folder = CheckpointStore(o.out, {.keep_last = 1, .warn = log_warn}).save(content);
  load_model(*device, folder, "q");

  const std::string text = cat("ResNet-{}, {} stem, width {}, {} channels{}", model.depth, model.stem, model.width,
                               channels, has_head ? cat(", head of {} dimensions", model.dim) : ", no head");
  answer(o.common,
         {{"task", "import"},
          {"from", o.file},
          {"prefix", prefix},
          {"out", o.out},
          {"checkpoint", folder.string()},
          {"model", to_json(resolved.config)["model"]},
          {"in_channels", channels},
          {"has_head", has_head},
          {"unused", unused}},
         cat("{}: {}\n", folder.string(), text));
  return 0;
}

}  // namespace

Command import_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  app.add_option("file", o->file, "Weights with torchvision's names; depth, stem and width are recognised")
      ->type_name("FILE.safetensors")
      ->required();
  app.add_option("--out", o->out, "Folder that --checkpoint of the other commands then takes")
      ->type_name("DIR")
      ->required();
  const CLI::Option* prefix =
      app.add_option("--prefix", o->prefix, "Of the names, such as module.encoder_q. [found]")->type_name("TEXT");
  app.add_option("--set", o->set, "Configuration for evaluation, such as eval.size=96 or augment.mean=0.5,0.5,0.5")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  add_common_options(app, o->common);
  app.footer("Example: csml import resnet50.safetensors --out runs/imported");
  return [o, prefix] {
    o->prefix_given = prefix->count() > 0;
    return run(*o);
  };
}

}  // namespace csml
