// csml inspect: what a run folder, a checkpoint, a safetensors file or a data set holds; --verify checks all of it.
#include <algorithm>
#include <filesystem>

#include "apps/command.h"
#include "csml/config/config.h"
#include "data/dataset.h"
#include "engine/checkpoint.h"
#include "engine/file.h"
#include "engine/log.h"

namespace csml {
namespace fs = std::filesystem;
namespace {

constexpr size_t kMostTextBytes = size_t{1} << 30;
constexpr size_t kMostNamed = 20;  // damaged things that are named; the rest is counted

struct Options {
  CommonOptions common;
  std::string path;
  bool verify = false, arrays = false;
};

/// What was found: the JSON, the text, and what is damaged.
struct Findings {
  nlohmann::json json;
  std::string text;
  std::vector<std::string> damaged;
};

void describe_arrays(const SafetensorsFile& file, bool list, Findings& found) {
  int64_t values = 0;
  size_t bytes = 0;
  nlohmann::json arrays = nlohmann::json::array();
  std::string lines;
  for (const auto& [name, info] : file.arrays()) {
    values += info.shape.size();
    bytes += info.bytes;
    std::vector<int64_t> shape;
    for (int i = 0; i < info.shape.rank(); ++i) shape.push_back(info.shape[i]);
    arrays.push_back({{"name", name}, {"dtype", name_of(info.dtype)}, {"shape", shape}});
    lines += cat("  {:<44} {} {}\n", name, name_of(info.dtype), info.shape.text());
  }
  found.json["count"] = file.arrays().size();
  found.json["values"] = values;
  found.json["bytes"] = bytes;
  found.json["metadata"] = file.metadata();
  found.text += cat("{}: {} arrays, {} values, {} bytes\n", file.path().string(), file.arrays().size(), values, bytes);
  for (const auto& [key, value] : file.metadata()) found.text += cat("  # {} = {}\n", key, value);
  if (!list) return;
  found.json["arrays"] = std::move(arrays);
  found.text += lines;
}

Findings inspect_file(const Options& o) {
  Findings found;
  found.json = {{"what", "safetensors"}, {"path", o.path}};
  const SafetensorsFile file = SafetensorsFile::open(o.path);
  describe_arrays(file, true, found);
  if (o.verify) {  // the format holds no checksums: what can be checked is the layout, and that every byte is readable
    for (const std::string& name : file.names()) file.read(name);
    found.json["digest"] = digest_of(fs::path(o.path)).hex;
  }
  return found;
}

nlohmann::json describe_checkpoint(const Checkpoint& checkpoint) {
  return {{"folder", checkpoint.folder.string()},
          {"step", checkpoint.step},
          {"epoch", checkpoint.epoch},
          {"milestone", checkpoint.milestone}};
}

Findings inspect_checkpoint(const Options& o) {
  Findings found;
  const Checkpoint checkpoint = open_checkpoint(o.path);  // verifies every checksum
  describe_arrays(checkpoint.model(), o.arrays, found);
  nlohmann::json state = nlohmann::json::object();
  Findings state_found;
  describe_arrays(checkpoint.state(), o.arrays, state_found);
  found.text += state_found.text;
  found.json = {{"what", "checkpoint"}, {"model", found.json}, {"state", state_found.json}};
  found.json.update(describe_checkpoint(checkpoint));
  found.json["user"] = checkpoint.user;
  found.text = cat("step {}, epoch {}{}; checksums agree\n", checkpoint.step, checkpoint.epoch,
                   checkpoint.milestone ? ", milestone" : "") +
               found.text;
  return found;
}

std::vector<fs::path> checkpoint_folders(const fs::path& run) {
  std::vector<fs::path> folders;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(run / "checkpoints", error))
    if (entry.is_directory() && entry.path().filename().string().starts_with("step_") &&
        entry.path().filename().string().find(".tmp") == std::string::npos)
      folders.push_back(entry.path());
  std::sort(folders.begin(), folders.end());
  return folders;
}

Findings inspect_run(const Options& o) {
  Findings found;
  const fs::path run = o.path;
  std::error_code error;
  nlohmann::json checkpoints = nlohmann::json::array();
  for (const fs::path& folder : checkpoint_folders(run)) {
    nlohmann::json json{{"folder", folder.string()}};
    if (o.verify) {
      try {
        json = describe_checkpoint(open_checkpoint(folder));
        json["good"] = true;
      } catch (const Error& e) {
        json["good"] = false;
        found.damaged.push_back(e.what());
      }
    }
    found.text += cat("  {}{}\n", folder.filename().string(), o.verify ? json["good"] ? "  good" : "  DAMAGED" : "");
    checkpoints.push_back(std::move(json));
  }
  const std::string latest =
      fs::exists(run / "latest", error) ? read_text_file(run / "latest", 4096).substr(0, 4095) : "";
  nlohmann::json last = nlohmann::json::object();
  int64_t lines = 0, torn = 0;
  if (fs::exists(run / "metrics.jsonl", error)) {
    const std::string text = read_text_file(run / "metrics.jsonl", kMostTextBytes);
    for (size_t at = 0; at < text.size();) {
      const size_t end = std::min(text.find('\n', at), text.size());
      const auto line = parse_json(std::string_view(text).substr(at, end - at));
      ++lines;
      if (!line.is_object() || !line.contains("kind") || !line["kind"].is_string())
        ++torn;
      else
        last[line["kind"].get<std::string>()] = line;
      at = end + 1;
    }
  }
  if (torn && o.verify)
    found.damaged.push_back(cat("{} of {} lines of metrics.jsonl are no JSON objects", torn, lines));
  found.json = {{"what", "run"},
                {"path", o.path},
                {"latest", latest.substr(0, latest.find('\n'))},
                {"checkpoints", checkpoints},
                {"metrics_lines", lines},
                {"last", last}};
  std::string head = cat("run {}: {} checkpoints, {} lines of metrics\n", o.path, checkpoints.size(), lines);
  if (last.contains("step"))
    head += cat("  step {}, epoch {}, loss {}\n", last["step"]["step"].dump(), last["step"]["epoch"].dump(),
                last["step"].value("loss", nlohmann::json()).dump());
  if (last.contains("eval")) head += cat("  online k-NN {} %\n", last["eval"].value("top1", nlohmann::json()).dump());
  found.text = head + found.text;
  return found;
}

void verify_images(const Dataset& data, Findings& found) {
  LoadScratch scratch;
  int64_t bad = 0;
  int least = 0, most = 0;
  Progress progress("verify", data.size(), "images");
  for (int64_t i = 0; i < data.size(); ++i) {
    try {
      const ImageView image = data.view(i, scratch);
      const int shorter = std::min(image.height, image.width), longer = std::max(image.height, image.width);
      least = least == 0 ? shorter : std::min(least, shorter);
      most = std::max(most, longer);
    } catch (const Error& e) {
      ++bad;
      if (found.damaged.size() < kMostNamed) found.damaged.push_back(e.what());
    }
    progress.update(i + 1, bad ? cat("{} bad", bad) : "");
  }
  progress.finish();
  found.json.update({{"bad_images", bad}, {"shortest_side", least}, {"longest_side", most}});
  found.text += cat("  {} of {} images unreadable; sides from {} to {} pixels\n", bad, data.size(), least, most);
}

Findings inspect_data(const Options& o) {
  Findings found;
  const auto data = open_dataset(o.path);
  std::vector<int64_t> counts(static_cast<size_t>(data->class_count()));
  int64_t unlabelled = 0;
  for (int64_t i = 0; i < data->size(); ++i) {
    if (data->label(i) < 0)
      ++unlabelled;
    else
      ++counts[static_cast<size_t>(data->label(i))];
  }
  const std::string fingerprint = cat("{:016x}", data->fingerprint());
  found.json = {{"what", "data"},
                {"spec", o.path},
                {"description", data->describe()},
                {"images", data->size()},
                {"channels", data->channels()},
                {"classes", data->class_names()},
                {"images_per_class", counts},
                {"unlabelled", unlabelled},
                {"left_out", data->left_out()},
                {"fingerprint", fingerprint}};
  found.text = cat("{}\n  fingerprint {}\n", data->describe(), fingerprint);
  constexpr size_t kMostClasses = 100;
  for (size_t c = 0; c < std::min(counts.size(), kMostClasses); ++c)
    found.text += cat("  {:<4} {:<32} {} images\n", c, data->class_names()[c], counts[c]);
  if (counts.size() > kMostClasses) found.text += cat("  … and {} more classes\n", counts.size() - kMostClasses);
  if (o.verify) {
    try {
      data->verify();
    } catch (const Error& e) { found.damaged.push_back(e.what()); }
    verify_images(*data, found);
  }
  return found;
}

Findings inspect(const Options& o) {
  std::error_code error;
  const fs::path path = o.path;
  if (fs::is_regular_file(path, error) && path.extension() == ".safetensors") return inspect_file(o);
  if (fs::is_directory(path, error)) {
    if (fs::exists(path / "manifest.json", error)) return inspect_checkpoint(o);
    if (fs::exists(path / "checkpoints", error) || fs::exists(path / "metrics.jsonl", error)) return inspect_run(o);
  }
  return inspect_data(o);
}

int run(const Options& o) {
  start(o.common);
  Findings found = inspect(o);
  found.json["task"] = "inspect";
  if (o.verify) {
    found.json["verified"] = found.damaged.empty();
    found.json["damaged"] = found.damaged;
  }
  answer(o.common, found.json, found.text);
  if (found.damaged.empty()) return 0;
  for (const std::string& line : found.damaged) log_warn(line);
  throw Error(cat("{} is damaged: {}", o.path, found.damaged.front()));
}

}  // namespace

Command inspect_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  app.add_option("path", o->path, "Run folder, checkpoint folder, .safetensors file, or data set SPEC")
      ->type_name("PATH|SPEC")
      ->required();
  app.add_flag("--verify", o->verify, "Check every checksum, and read every array or image; exit code 1 on damage");
  app.add_flag("--arrays", o->arrays, "List the arrays of a checkpoint");
  add_common_options(app, o->common);
  app.footer(
      "Examples: csml inspect runs/demo --verify\n"
      "          csml inspect 'folder:DIR' --verify");
  return [o] { return run(*o); };
}

}  // namespace csml
