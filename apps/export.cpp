// csml export: an encoder into a safetensors file under torchvision's names.
#include <cstring>

#include "apps/command.h"
#include "csml/saved_model.h"
#include "models/weights.h"

namespace csml {
namespace {

struct Options {
  CommonOptions common;
  std::string checkpoint, out, format = "torchvision", what = "backbone", encoder = "q";
};

/// Reads the file back and compares every array.
void verify(const std::string& path, const std::vector<HostArray>& arrays) {
  const SafetensorsFile file = SafetensorsFile::open(path);
  if (file.arrays().size() != arrays.size())
    throw Error(cat("{} holds {} arrays where {} were written", path, file.arrays().size(), arrays.size()));
  for (const HostArray& array : arrays) {
    const NamedArray read = file.read(array.name);
    const size_t bytes = static_cast<size_t>(array.shape.size()) * size_of(array.dtype);
    if (read.dtype != array.dtype || !(read.shape == array.shape) || read.data.size() != bytes ||
        std::memcmp(read.data.data(), array.data, bytes) != 0)
      throw Error(cat("{}: '{}' reads back differently from what was written", path, array.name));
  }
}

int run(const Options& o) {
  start(o.common);
  const auto device = Device::open("cpu");
  const SavedModel model = load_model(*device, o.checkpoint, o.encoder);
  std::vector<NamedArray> weights = to_host(model.encoder->params(), "");
  if (o.what == "backbone") std::erase_if(weights, [](const NamedArray& a) { return a.name.starts_with("fc."); });
  std::vector<HostArray> arrays;
  const int64_t batches = 0;
  for (const NamedArray& a : weights) {
    arrays.push_back({a.name, a.dtype, a.shape, a.data.data()});
    // PyTorch's strict loading wants this counter beside every running mean.
    const std::string mean = "running_mean";
    if (o.format == "torchvision" && a.name.ends_with(mean))
      arrays.push_back(
          {a.name.substr(0, a.name.size() - mean.size()) + "num_batches_tracked", DType::i64, Shape{}, &batches});
  }
  const ModelConfig& m = model.config.model;
  const std::string network = cat("ResNet-{}, {} stem, width {}", m.depth, m.stem, m.width);
  const auto list = [&](const std::array<float, 4>& v) {
    return cat("{}", fmt::join(v.begin(), v.begin() + model.in_channels, ","));
  };
  const FileDigest digest = write_safetensors(o.out, arrays,
                                              {{"format", "pt"},
                                               {"network", network},
                                               {"source", model.source},
                                               {"encoder", model.which},
                                               {"epoch", std::to_string(model.epoch)},
                                               {"mean", list(model.config.augment.mean)},
                                               {"std", list(model.config.augment.std)},
                                               {"channel_order", model.in_channels == 3 ? "RGB" : "gray"}});
  verify(o.out, arrays);
  answer(o.common,
         {{"task", "export"},
          {"out", o.out},
          {"format", o.format},
          {"what", o.what},
          {"encoder", model.which},
          {"checkpoint", model.source},
          {"network", network},
          {"arrays", arrays.size()},
          {"bytes", digest.bytes},
          {"xxh3_128", digest.hex},
          {"verified", true}},
         cat("{}: {} arrays, {} bytes, {} ({}), read back and compared\n", o.out, arrays.size(), digest.bytes, network,
             o.what));
  return 0;
}

}  // namespace

Command export_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  app.add_option("--checkpoint", o->checkpoint, "Run folder, checkpoint folder or torchvision-named file")
      ->type_name("PATH")
      ->required();
  app.add_option("--out", o->out, "File to write")->type_name("FILE.safetensors")->required();
  app.add_option(
         "--format", o->format,
         "torchvision (with num_batches_tracked, for strict loading) | safetensors (weights and statistics only)")
      ->check(CLI::IsMember({"torchvision", "safetensors"}))
      ->type_name("NAME")
      ->capture_default_str();
  app.add_option("--what", o->what, "backbone | full (with the projection head fc.0, fc.2)")
      ->check(CLI::IsMember({"backbone", "full"}))
      ->type_name("WHAT")
      ->capture_default_str();
  app.add_option("--encoder", o->encoder, "q (trained) | k (its moving average) | init (untrained)")
      ->check(CLI::IsMember({"q", "k", "init"}))
      ->type_name("WHICH")
      ->capture_default_str();
  add_common_options(app, o->common);
  app.footer(
      "Example: csml export --checkpoint runs/demo --out backbone.safetensors\n"
      "In PyTorch: m = torchvision.models.resnet50(); m.fc = torch.nn.Identity(); "
      "m.load_state_dict(safetensors.torch.load_file(FILE))\n"
      "timm's ResNets take the same names. Images are RGB, normalised by the mean and std in the file's metadata.");
  return [o] { return run(*o); };
}

}  // namespace csml
