#include "csml/training/saved_model.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "engine/json.h"
#include "engine/log.h"
#include "models/weights.h"

namespace csml {

namespace {

std::vector<NamedArray> read_arrays(const SafetensorsFile& file, const std::string& prefix) {
  std::vector<NamedArray> arrays;
  for (const std::string& name : file.names())
    if (name.rfind(prefix, 0) == 0) arrays.push_back(file.read(name));
  return arrays;
}

/// model.head_bn of a head whose arrays are exactly those of models/projector.h; else empty: no head, or another one.
std::string head_norm(const ArrayShapes& shapes) {
  std::set<std::string> found;
  for (const auto& [name, shape] : shapes)
    if (name.starts_with("fc.") && !name.ends_with("num_batches_tracked")) found.insert(name.substr(3));
  const std::set<std::string> none{"0.weight", "0.bias", "2.weight", "2.bias"};
  std::set<std::string> hidden{"0.weight",      "1.weight", "1.bias", "1.running_mean",
                               "1.running_var", "3.weight", "3.bias"};
  if (found == none) return "none";
  if (found == hidden) return "hidden";
  hidden.erase("3.bias");
  hidden.insert({"4.running_mean", "4.running_var"});
  return found == hidden ? "all" : "";
}

SavedModel from_checkpoint(Device& device, const Checkpoint& checkpoint, const std::string& which) {
  SavedModel out;
  try {
    out.in_channels = whole_number<int>(checkpoint.user.at("in_channels"));
    out.config = config_from_json(checkpoint.user.at("config"));
    out.has_head = checkpoint.user.value("has_head", true);
  } catch (const nlohmann::json::exception&) {
    throw Error(cat("{}: its manifest holds no configuration; it was not written by csml pretrain or csml import",
                    checkpoint.folder.string()));
  }
  out.source = checkpoint.folder.string();
  out.content = digest_of(checkpoint.folder / "model.safetensors").hex;
  out.step = checkpoint.step;
  out.epoch = checkpoint.epoch;
  out.which = which;
  out.encoder = std::make_unique<Encoder>(device, out.config.model, out.in_channels, out.config.train.seed, false);
  if (which == "init") {
    out.step = out.epoch = 0;
    return out;
  }
  const std::string prefix = "encoder_" + which + ".";
  try {
    from_host(out.encoder->params(), read_arrays(checkpoint.model(), prefix), prefix);
  } catch (const Error& e) { throw Error(cat("{}: {}", checkpoint.folder.string(), e.what())); }
  check_finite(to_host(out.encoder->params(), ""), out.source);
  return out;
}

}  // namespace

ModelConfig recognise_model(const SafetensorsFile& file, const std::string& prefix, int* in_channels, bool* has_head) {
  ArrayShapes shapes;
  for (const auto& [name, info] : file.arrays())
    if (name.starts_with(prefix)) shapes[name.substr(prefix.size())] = info.shape;
  return recognise_model(shapes, cat("{}{}{}", file.path().string(), prefix.empty() ? "" : ", ", prefix), in_channels,
                         has_head);
}

ModelConfig recognise_model(const ArrayShapes& shapes, const std::string& place, int* in_channels, bool* has_head) {
  const auto has_module = [&](const std::string& name) { return shapes.contains(name + ".weight"); };
  const auto extent = [&](const std::string& name, int dimension) {
    const Shape& shape = shapes.at(name);
    if (dimension >= shape.rank())
      throw Error(cat("{}: '{}' has shape {}: this is no ResNet of ours", place, name, shape.text()));
    constexpr int64_t kMost = 65536;
    if (shape[dimension] < 1 || shape[dimension] > kMost)
      throw Error(cat("{}: '{}' has shape {}: this is no ResNet of ours", place, name, shape.text()));
    return static_cast<int>(shape[dimension]);
  };
  if (!has_module("conv1") || !has_module("layer1.0.conv1"))
    throw Error(cat("{}: no 'conv1.weight' and 'layer1.0.conv1.weight': this is no torchvision ResNet", place));
  ModelConfig config;
  config.width = extent("conv1.weight", 0);
  if (config.width > 1024)
    throw Error(cat("{}: {} channels in the first stage are more than 1024", place, config.width));
  *in_channels = extent("conv1.weight", 1);
  config.stem = extent("conv1.weight", 2) == 3 ? "cifar" : "imagenet";
  auto blocks = [&](int layer) {
    int count = 0;
    while (has_module(cat("layer{}.{}.conv1", layer, count))) ++count;
    return count;
  };
  const bool bottleneck = has_module("layer1.0.conv3");
  const int first = blocks(1), third = blocks(3);
  if (bottleneck && first == 3 && (third == 6 || third == 23)) {
    config.depth = third == 6 ? 50 : 101;
  } else if (!bottleneck && (first == 2 || first == 3)) {
    config.depth = first == 2 ? 18 : 34;
  } else {
    throw Error(cat("{}: {} {} blocks in layer1 and {} in layer3: no ResNet-18, 34, 50 or 101", place, first,
                    bottleneck ? "bottleneck" : "basic", third));
  }
  config.head_bn = head_norm(shapes);
  *has_head = !config.head_bn.empty();
  if (*has_head) {
    config.head_hidden = extent("fc.0.weight", 0);
    config.dim = extent(config.head_bn == "none" ? "fc.2.weight" : "fc.3.weight", 0);
  } else {
    config.head_bn = "none";
  }
  return config;
}

Checkpoint find_checkpoint(const std::filesystem::path& path) {
  namespace fs = std::filesystem;
  if (!fs::exists(path)) throw Error(cat("checkpoint {} does not exist", path.string()));
  if (!fs::is_directory(path)) throw Error(cat("{} is no run or checkpoint folder", path.string()));
  if (fs::exists(path / "manifest.json")) return open_checkpoint(path);
  const auto newest = newest_checkpoint(path, [](const std::string& line) { log_warn(line); });
  if (!newest) throw Error(cat("{} holds no good checkpoint", path.string()));
  return *newest;
}

void check_finite(const std::vector<NamedArray>& arrays, const std::string& place) {
  for (const NamedArray& array : arrays) {
    if (array.dtype != DType::f32) continue;
    const auto* values = reinterpret_cast<const float*>(array.data.data());
    const int64_t n = array.shape.size();
    const int64_t wrong = std::count_if(values, values + n, [](float v) { return !std::isfinite(v); });
    if (wrong > 0)
      throw Error(
          cat("{}: {} of the {} values of '{}' are NaN or infinite: the training has diverged; use an earlier "
              "checkpoint",
              place, wrong, n, array.name));
  }
}

SavedModel load_model(Device& device, const std::filesystem::path& path, const std::string& which) {
  namespace fs = std::filesystem;
  if (which != "q" && which != "k" && which != "init")
    throw UsageError(cat("encoder '{}' is unknown; use q, k or init (untrained)", which));
  if (!fs::exists(path)) throw Error(cat("checkpoint {} does not exist", path.string()));
  if (fs::is_directory(path)) return from_checkpoint(device, find_checkpoint(path), which);
  const SafetensorsFile file = SafetensorsFile::open(path);
  SavedModel out;
  out.config.model = recognise_model(file, "", &out.in_channels, &out.has_head);
  out.config.augment = file_normalisation(file, out.config.augment);
  out.source = path.string();
  out.content = digest_of(path).hex;
  out.which = "q";
  out.encoder = std::make_unique<Encoder>(device, out.config.model, out.in_channels, 0, false);
  load_torchvision(*out.encoder, file, out.has_head);
  return out;
}

AugmentConfig file_normalisation(const SafetensorsFile& file, AugmentConfig otherwise) {
  const std::pair<const char*, std::array<float, 4>*> parts[] = {{"mean", &otherwise.mean}, {"std", &otherwise.std}};
  for (const auto& [name, values] : parts) {
    const auto found = file.metadata().find(name);
    if (found == file.metadata().end()) continue;
    const nlohmann::json list = parse_json("[" + found->second + "]");
    const bool numbers = list.is_array() && !list.empty() && list.size() <= values->size() &&
                         std::all_of(list.begin(), list.end(), [](const nlohmann::json& v) { return v.is_number(); });
    if (!numbers)
      throw Error(
          cat("{}: metadata {} = '{}' must be numbers, one per channel", file.path().string(), name, found->second));
    for (size_t c = 0; c < list.size(); ++c) (*values)[c] = list[c].get<float>();
  }
  try {
    check_augment(otherwise);
  } catch (const UsageError& e) { throw Error(cat("{}: metadata: {}", file.path().string(), e.what())); }
  return otherwise;
}

void load_torchvision(Encoder& encoder, const SafetensorsFile& file, bool has_head) {
  const auto kept = [has_head](const std::string& name) {  // keeps its initial values
    return name.starts_with("heads.") || name.starts_with("predictors.") || (!has_head && name.starts_with("fc."));
  };
  std::vector<NamedArray> arrays;
  for (NamedArray& array : read_arrays(file, ""))
    if (!kept(array.name)) arrays.push_back(std::move(array));
  for (NamedArray& array : to_host(encoder.params(), ""))
    if (kept(array.name)) arrays.push_back(std::move(array));
  try {
    from_host(encoder.params(), arrays, "");
  } catch (const Error& e) { throw Error(cat("{}: {}", file.path().string(), e.what())); }
  check_finite(to_host(encoder.params(), ""), file.path().string());
}

}  // namespace csml
