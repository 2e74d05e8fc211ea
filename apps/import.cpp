// csml import: weights named as torchvision, timm or detectron2 do, or a whole exported checkpoint, into a checkpoint
// that every other command reads.
#include <filesystem>
#include <map>

#include "apps/command.h"
#include "apps/config.h"
#include "apps/feature_source.h"
#include "apps/run_folder.h"
#include "csml/training/saved_model.h"
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

constexpr const char* kTorchvision = "layer1.0.conv1.weight";
constexpr const char* kDetectron2 = "res2.0.conv1.weight";

/// What stands before `tail` in names: the one choice, or that of a query encoder among several. Empty list: none.
std::vector<std::string> prefixes(const SafetensorsFile& file, const std::string& tail) {
  std::vector<std::string> found;
  for (const std::string& name : file.names())
    if (name.ends_with(tail)) found.push_back(name.substr(0, name.size() - tail.size()));
  return found;
}

std::string find_prefix(const SafetensorsFile& file, bool detectron2) {
  const std::vector<std::string> found = prefixes(file, detectron2 ? kDetectron2 : kTorchvision);
  if (found.empty())
    throw Error(cat("{}: no array named …{} (torchvision, timm) or …{} (detectron2): this is no ResNet of ours",
                    file.path().string(), kTorchvision, kDetectron2));
  for (const std::string& prefix : found)
    if (found.size() > 1 && prefix.find("encoder_q") != std::string::npos) return prefix;
  if (found.size() > 1)
    throw UsageError(
        cat("{} holds several networks; say which by --prefix: {}", file.path().string(), fmt::join(found, ", ")));
  return found.front();
}

/// Names in the file by torchvision's name, for what stands under a prefix.
std::map<std::string, std::string> torchvision_names(const SafetensorsFile& file, const std::string& prefix,
                                                     bool detectron2) {
  std::map<std::string, std::string> names;
  for (const std::string& name : file.names()) {
    if (!name.starts_with(prefix)) continue;
    const std::string plain = name.substr(prefix.size());
    const std::string ours = detectron2 ? torchvision_name(plain) : plain;
    if (!ours.empty()) names[ours] = name;
  }
  return names;
}

/// The arrays under torchvision's names. The head's come along only where it is a projection head of ours.
std::vector<NamedArray> read_network(const SafetensorsFile& file, const std::map<std::string, std::string>& names,
                                     const Encoder& encoder, bool has_head) {
  std::vector<NamedArray> arrays;
  for (const auto& [ours, name] : names) {
    if (ours.starts_with("fc.") && !has_head) continue;
    arrays.push_back(file.read(name));
    arrays.back().name = ours;
  }
  if (!has_head) {
    for (NamedArray& array : to_host(encoder.params(), ""))
      if (array.name.starts_with("fc.")) arrays.push_back(std::move(array));
  }
  return arrays;
}

void create_folder(const std::string& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) throw Error(cat("cannot create the folder {}: {}", folder, error.message()));
}

/// A whole checkpoint from one file (csml export --what state): csml pretrain --resume goes on from it.
int import_state(const Options& o, const SafetensorsFile& file) {
  if (!o.set.empty() || o.prefix_given)
    throw UsageError(cat("{} is a whole checkpoint: it takes neither --set nor --prefix", o.file));
  CheckpointContent content;
  try {
    const auto metadata = [&](const char* key) { return parse_json(file.metadata().at(key)); };
    content.step = whole_number<int64_t>(metadata(kStateStep));
    content.epoch = whole_number<int64_t>(metadata(kStateEpoch));
    content.user = metadata(kStateUser);
    if (!content.user.is_object()) throw Error("no manifest");
  } catch (const std::exception&) { throw Error(cat("{}: its metadata name no step, epoch and manifest", o.file)); }
  std::vector<NamedArray> arrays;
  for (const std::string& name : file.names()) arrays.push_back(file.read(name));
  check_finite(arrays, o.file);
  const std::string prefix = kStatePrefix;
  for (const NamedArray& a : arrays) {
    const bool state = a.name.starts_with(prefix);
    (state ? content.state : content.model)
        .push_back({state ? a.name.substr(prefix.size()) : a.name, a.dtype, a.shape, a.data.data()});
  }
  content.model_metadata = {{"format", "pt"}};
  create_folder(o.out);
  const std::filesystem::path folder = CheckpointStore(o.out, {.keep_last = 1, .warn = log_warn}).save(content);
  const auto device = Device::open("cpu");
  load_model(*device, folder, "q");
  answer(o.common,
         {{"task", "import"},
          {"from", o.file},
          {"what", "state"},
          {"out", o.out},
          {"checkpoint", folder.string()},
          {"step", content.step},
          {"epoch", content.epoch}},
         cat("{}: a whole checkpoint, step {}; csml pretrain --resume {} goes on from it\n", folder.string(),
             content.step, folder.string()));
  return 0;
}

int run(const Options& o) {
  start(o.common);
  const SafetensorsFile file = SafetensorsFile::open(o.file);
  if (holds_run(o.out)) throw Error(cat("{} holds a run already; give another --out", o.out));
  if (file.metadata().contains(kStateUser)) return import_state(o, file);
  const bool detectron2 = prefixes(file, kTorchvision).empty() && !prefixes(file, kDetectron2).empty();
  const std::string prefix = o.prefix_given ? o.prefix : find_prefix(file, detectron2);
  const std::map<std::string, std::string> names = torchvision_names(file, prefix, detectron2);
  ArrayShapes shapes;
  for (const auto& [ours, name] : names) shapes[ours] = file.info(name).shape;
  int channels = 3;
  bool has_head = false;
  const ModelConfig model = recognise_model(shapes, o.file, &channels, &has_head);

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
  const std::vector<NamedArray> arrays = read_network(file, names, encoder, has_head);
  std::vector<std::string> unused;
  try {
    unused = from_host(encoder.params(), arrays, "");
  } catch (const Error& e) { throw Error(cat("{}: {}", o.file, e.what())); }
  std::erase_if(unused, [](const std::string& name) { return name.ends_with("num_batches_tracked"); });
  if (!unused.empty()) log_warn(cat("{} arrays have no place in the network, first {}", unused.size(), unused[0]));

  check_finite(arrays, o.file);
  std::vector<NamedArray> both = to_host(encoder.params(), "encoder_q.");
  for (NamedArray& array : to_host(encoder.params(), "encoder_k.")) both.push_back(std::move(array));
  CheckpointContent content;
  for (const NamedArray& a : both) content.model.push_back({a.name, a.dtype, a.shape, a.data.data()});
  content.model_metadata = {{"format", "pt"}};
  content.user = {{"config", to_json(resolved.config)},
                  {"in_channels", channels},
                  {"imported_from", o.file},
                  {"has_head", has_head}};
  create_folder(o.out);
  const std::filesystem::path folder = CheckpointStore(o.out, {.keep_last = 1, .warn = log_warn}).save(content);
  load_model(*device, folder, "q");

  const std::string text = cat("ResNet-{}, {} stem, width {}, {} channels{}", model.depth, model.stem, model.width,
                               channels, has_head ? cat(", head of {} dimensions", model.dim) : ", no head");
  answer(o.common,
         {{"task", "import"},
          {"from", o.file},
          {"prefix", prefix},
          {"names", detectron2 ? "detectron2" : "torchvision"},
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
  app.add_option("file", o->file,
                 "Weights with torchvision's (timm's) or detectron2's names, of which depth, stem and width are "
                 "recognised, or a whole checkpoint of csml export --what state")
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
  app.footer(
      "Example: csml import resnet50.safetensors --out runs/imported\n"
      "Pickles (.pth, .pkl) are not read: they can run code. In Python: safetensors.torch.save_file(torch.load(FILE, "
      "weights_only=True), OUT)");
  return [o, prefix] {
    o->prefix_given = prefix->count() > 0;
    return run(*o);
  };
}

}  // namespace csml
