// csml export: an encoder, or a whole checkpoint, into one file for other programs.
#include <algorithm>
#include <cstring>
#include <filesystem>
#include <limits>

#include "apps/command.h"
#include "csml/training/saved_model.h"
#include "models/onnx.h"
#include "models/pickle.h"
#include "models/weights.h"

namespace csml {
namespace {

struct Options {
  CommonOptions common;
  std::string checkpoint, out, format, what = "backbone", encoder = "q";
};

std::vector<HostArray> views_of(const std::vector<NamedArray>& arrays) {
  std::vector<HostArray> views;
  for (const NamedArray& a : arrays) views.push_back({a.name, a.dtype, a.shape, a.data.data()});
  return views;
}

/// Reads a safetensors file back and compares every array; what went into a pipe or a device is gone.
void verify(const std::string& path, const std::vector<HostArray>& arrays) {
  if (!std::filesystem::is_regular_file(path)) return;
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

const char* read_back(const std::string& path) {
  return std::filesystem::is_regular_file(path) ? ", read back and compared" : "";
}

/// Writes bytes made in memory and reads them back.
FileDigest write_bytes(const std::string& path, const std::string& bytes) {
  AtomicFile file(path);
  file.write(bytes.data(), bytes.size());
  const FileDigest digest = file.commit();
  if (std::filesystem::is_regular_file(path) && !(digest_of(path) == digest))
    throw Error(cat("{} reads back differently from what was written", path));
  return digest;
}

FileDigest write_onnx(const std::string& path, const std::vector<NamedArray>& weights, const Metadata& metadata,
                      size_t* count) {
  const FileDigest written = write_bytes(path, onnx_resnet(weights, metadata));
  *count = weights.size();
  if (!std::filesystem::is_regular_file(path)) return written;
  const std::map<std::string, NamedArray> read =
      onnx_initializers(read_text_file(path, std::numeric_limits<int32_t>::max()));
  for (const NamedArray& a : weights) {
    const auto found = read.find(a.name);
    if (found == read.end() || !(found->second.shape == a.shape) || found->second.data != a.data)
      throw Error(cat("{}: '{}' reads back differently from what was written", path, a.name));
  }
  *count = read.size();
  return digest_of(path);
}

/// PyTorch's strict loading wants the counter num_batches_tracked beside every running mean.
void add_counters(std::vector<HostArray>* arrays) {
  static const int64_t batches = 0;
  const std::string mean = "running_mean";
  for (size_t i = 0, n = arrays->size(); i < n; ++i) {
    const std::string& name = (*arrays)[i].name;
    if (!name.ends_with(mean)) continue;
    arrays->push_back(
        {name.substr(0, name.size() - mean.size()) + "num_batches_tracked", DType::i64, Shape{}, &batches});
  }
}

/// The suffixes that files of a format have; the first format of a suffix is what it stands for.
struct Format {
  const char* name;
  std::vector<std::string> suffixes;
};
const std::vector<Format>& formats() {
  static const std::vector<Format> all{{"torchvision", {".safetensors"}},
                                       {"timm", {".safetensors"}},
                                       {"detectron2", {".pkl", ".safetensors"}},
                                       {"onnx", {".onnx"}},
                                       {"safetensors", {".safetensors"}}};
  return all;
}

/// --format, or what the suffix of --out stands for. Throws UsageError where they contradict each other, and for a suffix
/// that no format has.
std::string format_of(const Options& o) {
  const std::string suffix = std::filesystem::path(o.out).extension().string();
  std::error_code absent;
  if (std::filesystem::exists(o.out, absent) && std::filesystem::is_other(o.out, absent))  // a device or a pipe
    return !o.format.empty() ? o.format : o.what == "state" ? "safetensors" : "torchvision";
  std::string expected;
  for (const Format& format : formats()) {
    const bool fits = std::find(format.suffixes.begin(), format.suffixes.end(), suffix) != format.suffixes.end();
    if (o.format.empty() && fits) return o.what == "state" && suffix == ".safetensors" ? "safetensors" : format.name;
    if (o.format != format.name) continue;
    if (fits) return o.format;
    expected = fmt::format("{}", fmt::join(format.suffixes, " or "));
  }
  if (o.format.empty())
    throw UsageError(
        cat("--out {}: its suffix '{}' names no format; use .safetensors (torchvision, timm), .onnx or .pkl "
            "(detectron2)",
            o.out, suffix));
  throw UsageError(cat("--out {} with --format {}: such a file ends with {}", o.out, o.format, expected));
}

/// A checkpoint as one file: the encoders' arrays, the rest under "state.", its manifest in the metadata.
int export_state(const Options& o) {
  if (o.format != "safetensors") throw UsageError("--what state takes --format safetensors");
  const Checkpoint checkpoint = find_checkpoint(o.checkpoint);
  std::vector<NamedArray> arrays;
  for (const SafetensorsFile& file : {checkpoint.model(), checkpoint.state()})
    for (const std::string& name : file.names()) {
      arrays.push_back(file.read(name));
      if (file.path().filename() == "state.safetensors") arrays.back().name = kStatePrefix + name;
    }
  check_finite(arrays, checkpoint.folder.string());
  const std::vector<HostArray> views = views_of(arrays);
  const FileDigest digest = write_safetensors(o.out, views,
                                              {{"format", "pt"},
                                               {kStateStep, std::to_string(checkpoint.step)},
                                               {kStateEpoch, std::to_string(checkpoint.epoch)},
                                               {kStateUser, json_line(checkpoint.user)}});
  verify(o.out, views);
  answer(o.common,
         {{"task", "export"},
          {"out", o.out},
          {"format", o.format},
          {"what", o.what},
          {"checkpoint", checkpoint.folder.string()},
          {"step", checkpoint.step},
          {"arrays", views.size()},
          {"bytes", digest.bytes},
          {"xxh3_128", digest.hex},
          {"verified", std::filesystem::is_regular_file(o.out)}},
         cat("{}: {} arrays, {} bytes, {} (whole checkpoint, step {}){}\n", o.out, views.size(), digest.bytes,
             digest.hex, checkpoint.step, read_back(o.out)));
  return 0;
}

int run(const Options& asked) {
  start(asked.common);
  Options o = asked;
  o.format = format_of(o);
  if (o.what == "state") return export_state(o);
  const auto device = Device::open("cpu");
  const SavedModel model = load_model(*device, o.checkpoint, o.encoder);
  std::vector<NamedArray> weights = to_host(model.encoder->params(), "");
  if (o.what == "full" && !model.has_head)
    throw UsageError(cat("{} holds no projection head; use --what backbone", model.source));
  if (o.what == "backbone") std::erase_if(weights, [](const NamedArray& a) { return a.name.starts_with("fc."); });

  const ModelConfig& m = model.config.model;
  const std::string network = cat("ResNet-{}, {} stem, width {}", m.depth, m.stem, m.width);
  const AugmentConfig& normalise = model.config.augment;
  const auto list = [&](const std::array<float, 4>& v) {
    return cat("{}", fmt::join(v.begin(), v.begin() + model.in_channels, ","));
  };
  const Metadata metadata{{"format", "pt"},
                          {"network", network},
                          {"source", model.source},
                          {"encoder", model.which},
                          {"epoch", std::to_string(model.epoch)},
                          {"mean", list(normalise.mean)},
                          {"std", list(normalise.std)},
                          {"channel_order", model.in_channels == 3 ? "RGB" : "gray"}};
  FileDigest digest;
  size_t count = 0;
  if (o.format == "onnx") {
    digest = write_onnx(o.out, weights, metadata, &count);
  } else {
    if (o.format == "detectron2") {
      if (m.stem == "cifar") throw UsageError("detectron2's ResNet has a 7x7 stem; this encoder's is 3x3");
      if (o.what != "backbone") throw UsageError("--format detectron2 takes --what backbone");
      for (NamedArray& a : weights) a.name = detectron2_name(a.name);
    }
    std::vector<HostArray> arrays = views_of(weights);
    if (o.format == "torchvision" || o.format == "timm") add_counters(&arrays);
    count = arrays.size();
    if (o.format == "detectron2" && o.out.ends_with(".pkl")) {
      digest = write_bytes(o.out, detectron2_pickle(arrays, "csml"));
    } else {
      digest = write_safetensors(o.out, arrays, metadata);
      verify(o.out, arrays);
    }
  }
  answer(o.common,
         {{"task", "export"},
          {"out", o.out},
          {"format", o.format},
          {"what", o.what},
          {"encoder", model.which},
          {"checkpoint", model.source},
          {"network", network},
          {"arrays", count},
          {"bytes", digest.bytes},
          {"xxh3_128", digest.hex},
          {"verified", std::filesystem::is_regular_file(o.out)}},
         cat("{}: {} arrays, {} bytes, {} ({}){}\n", o.out, count, digest.bytes, network, o.what, read_back(o.out)));
  return 0;
}

}  // namespace

Command export_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  app.add_option("--checkpoint", o->checkpoint, "Run folder, checkpoint folder or torchvision-named file")
      ->type_name("PATH")
      ->required();
  app.add_option("--out", o->out, "File to write: .safetensors, .onnx, or .pkl with --format detectron2")
      ->type_name("FILE")
      ->required();
  app.add_option("--format", o->format,
                 "[by the suffix of --out: torchvision, onnx or detectron2] torchvision, timm (the same names, with "
                 "num_batches_tracked for strict loading) | detectron2 (.pkl "
                 "or .safetensors, by --out) | onnx (opset 17) | safetensors (weights and statistics only)")
      ->check(CLI::IsMember({"torchvision", "timm", "detectron2", "onnx", "safetensors"}))
      ->type_name("NAME");
  app.add_option("--what", o->what,
                 "backbone | full (with the projection head, fc.*) | state (the whole checkpoint in one file, "
                 "from which csml import makes a run that goes on; with --format safetensors)")
      ->check(CLI::IsMember({"backbone", "full", "state"}))
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
      "In timm: timm.create_model('resnet50', num_classes=0).load_state_dict(…) likewise.\n"
      "In detectron2: MODEL.WEIGHTS: FILE.pkl, MODEL.RESNETS.STRIDE_IN_1X1: False, INPUT.FORMAT: RGB, and the mean and "
      "std times 255 as MODEL.PIXEL_MEAN and PIXEL_STD.\n"
      "Images are RGB, normalised by the mean and std in the file's metadata.");
  return [o] { return run(*o); };
}

}  // namespace csml
