// csml replay: one step of a run again, or the views of one sample as a picture.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <optional>

#include "apps/command.h"
#include "apps/picture.h"
#include "csml/method/batch_layout.h"
#include "csml/method/resolve.h"
#include "csml/method/views.h"
#include "csml/training/replay.h"
#include "csml/training/saved_model.h"
#include "csml/training/steps_in_flight.h"
#include "engine/log.h"
#include "engine/ops.h"

namespace csml {
namespace fs = std::filesystem;
namespace {

constexpr int64_t kNone = -1;

struct Options {
  CommonOptions common;
  std::string run, data, out, device = "auto";
  int64_t step = kNone, epoch = kNone, sample = kNone;
};

Config config_of(const Checkpoint& checkpoint, const Options& o) {
  if (!checkpoint.user.contains("config"))
    throw Error(cat("{} holds no configuration of a run", checkpoint.folder.string()));
  Config config = config_from_json(checkpoint.user["config"]);
  resolve(config);
  if (!o.data.empty()) config.data.train = o.data;
  return config;
}

/// The step as it was captured, else the newest good checkpoint before it.
Checkpoint checkpoint_before(const Options& o) {
  const fs::path captured = fs::path(o.run) / kCaptures / cat("step_{:08d}", o.step);
  std::error_code error;
  if (fs::exists(captured, error)) return open_checkpoint(captured);
  const auto found = newest_checkpoint(
      o.run, [](const std::string& line) { log_warn(line); }, o.step - 1);
  if (!found)
    throw Error(
        cat("{}: step {} was not captured and no good checkpoint of fewer steps is there (train.captured_steps, "
            "train.keep_checkpoints)",
            o.run, o.step));
  return *found;
}

std::string numbers(const std::vector<int64_t>& values) {
  constexpr size_t kMost = 16;
  const std::vector<int64_t> shown(values.begin(), values.begin() + std::min(values.size(), kMost));
  return cat("{}{}", fmt::join(shown, " "), values.size() > kMost ? cat(" … ({} in all)", values.size()) : "");
}

int replay_one_step(const Options& o) {
  const Checkpoint checkpoint = checkpoint_before(o);
  const Config config = config_of(checkpoint, o);
  const auto device = Device::open(o.device);
  std::optional<Progress> progress;
  if (o.step - 1 > checkpoint.step) progress.emplace("replay", o.step - 1 - checkpoint.step, "steps");
  const StepReplay r = replay_step(*device, config, checkpoint, o.step, [&](int64_t done) { progress->update(done); });
  if (progress) progress->finish();

  nlohmann::json json{
      {"task", "replay"},
      {"run", o.run},
      {"step", o.step},
      {"epoch", r.before.epoch},
      {"batch", r.before.batch},
      {"checkpoint", checkpoint.folder.string()},
      {"repeated", r.repeated},
      {"finite", r.finite},
      {"first_non_finite", r.first_non_finite.empty() ? nlohmann::json() : nlohmann::json(r.first_non_finite)},
      {"measured", r.measured},
      {"samples", r.samples},
      {"neighbors", r.neighbors}};
  std::string text = cat("step {}: epoch {}, batch {}, from {}{}\n", o.step, r.before.epoch, r.before.batch,
                         checkpoint.folder.string(), r.repeated ? cat(", {} steps done again", r.repeated) : "");
  if (const nlohmann::json captured = checkpoint.user.value("capture", nlohmann::json()); captured.is_object()) {
    const bool same = captured.value("samples", std::vector<int64_t>()) == r.samples &&
                      captured.value("neighbors", std::vector<int64_t>()) == r.neighbors;
    json["same_images"] = same;
    text += same ? "  the images are those of the run\n" : "  the images are NOT those of the run: other data?\n";
  }
  for (const auto& [key, value] : r.measured.items())
    if (key.starts_with("loss") || key == "chance" || key.ends_with("similarity") || key == "lr")
      text += cat("  {:<20} {}\n", key, value.dump());
  text += r.finite ? "  the gradient is finite\n"
                   : cat("  the gradient is not finite; first: {}\n",
                         r.first_non_finite.empty() ? "no op, but the gradients themselves" : r.first_non_finite);
  text += cat("  images {}\n", numbers(r.samples));
  answer(o.common, json, text);
  return 0;
}

nlohmann::json view_json(const ViewSpec& view, const Image& image, const Config& config, int64_t epoch, int64_t sample,
                         const ColorParams& c) {
  const CropBox crop = draw_crop(view.augment, image.height(), image.width(), config.train.seed,
                                 static_cast<uint64_t>(epoch), static_cast<uint64_t>(sample), view.number);
  return {{"view", view.number},
          {"of", view.source == ViewSpec::Source::own ? "sample" : "neighbor"},
          {"size", view.augment.crop_size},
          {"crop", {{"y", crop.y}, {"x", crop.x}, {"height", crop.height}, {"width", crop.width}}},
          {"flip", crop.flip},
          {"brightness", c.brightness},
          {"contrast", c.contrast},
          {"saturation", c.saturation},
          {"hue", c.hue},
          {"order", c.order},
          {"gray", c.gray == 1},
          {"blur_sigma", c.blur_sigma},
          {"solarize", c.solarize == 1}};
}

/// Pictures side by side on black.
Image row_of(const std::vector<Image>& images, int channels) {
  constexpr int kGap = 4;
  int height = 0, width = -kGap;
  for (const Image& image : images) {
    height = std::max(height, image.height());
    width += image.width() + kGap;
  }
  Image row(height, width, channels);
  std::fill(row.data(), row.data() + row.size(), uint8_t{0});
  int x = 0;
  for (const Image& image : images) {
    const auto bytes = static_cast<size_t>(image.width()) * static_cast<size_t>(channels);
    for (int y = 0; y < image.height(); ++y)
      std::copy_n(image.view().row(y), bytes, row.row(y) + ptrdiff_t{x} * channels);
    x += image.width() + kGap;
  }
  return row;
}

/// An image whose short side is that of a view.
Image reduced(const Image& image, int side) {
  const double share = static_cast<double>(side) / std::min(image.height(), image.width());
  Image out(std::max(1, static_cast<int>(std::lround(image.height() * share))),
            std::max(1, static_cast<int>(std::lround(image.width() * share))), image.channels());
  ResizeScratch scratch;
  resize(image.view(), out.height(), out.width(), Filter::bilinear, out.data(), scratch);
  return out;
}

int replay_sample(const Options& o) {
  if (o.epoch < 0 || o.sample < 0) throw UsageError("--epoch E and --sample N belong together, both from 0 on");
  const Checkpoint checkpoint = find_checkpoint(o.run);
  const Config config = config_of(checkpoint, o);
  const auto data = open_dataset(config.data.train);
  if (o.sample >= data->size())
    throw UsageError(cat("--sample {}: {} holds {} images", o.sample, config.data.train, data->size()));
  const auto table = neighbor_table_of(checkpoint, data->size());
  std::vector<ViewSpec> views = plan_of(config).views;
  if (!table)  // before the first search, or a method without one
    std::erase_if(views, [](const ViewSpec& v) { return v.source == ViewSpec::Source::neighbor; });
  LoaderOptions options = training_loader_options(config, Comm::alone(), {});
  options.workers = 0;
  options.batch_size = 1;
  options.shuffle_span = 0;
  Loader loader(*data, views, options);
  const Batch batch = loader.sample_views(o.epoch, o.sample, table);
  const int64_t sample = batch.samples[0], neighbor = batch.neighbors[0];

  const auto device = Device::open(o.device);
  const Image own = data->load(sample);
  const Image other = neighbor >= 0 ? data->load(neighbor) : Image();
  std::vector<Image> pictures;
  pictures.push_back(reduced(own, config.augment.crop_size));
  if (neighbor >= 0) pictures.push_back(reduced(other, config.augment.crop_size));
  nlohmann::json drawn = nlohmann::json::array();
  for (size_t v = 0; v < views.size(); ++v) {
    ViewInput input(*device, 1, views[v]);
    input.upload(batch.views[v]);
    pictures.push_back(std::move(to_images(input.images(), views[v].augment)[0]));
    ColorParams color;
    std::copy_n(batch.views[v].params.data(), ColorParams::kColumns, reinterpret_cast<float*>(&color));
    const bool its = views[v].source == ViewSpec::Source::own;
    drawn.push_back(view_json(views[v], its ? own : other, config, o.epoch, sample, color));
  }
  const std::string out = o.out.empty() ? cat("sample_{}_epoch_{}.png", o.sample, o.epoch) : o.out;
  write_text_file(out, png_bytes(row_of(pictures, data->channels()).view()));
  const nlohmann::json json{{"task", "replay"},
                            {"run", o.run},
                            {"epoch", o.epoch},
                            {"sample", o.sample},
                            {"shown", sample},
                            {"path", data->name(sample)},
                            {"label", data->label(sample)},
                            {"neighbor", neighbor},
                            {"neighbors_of_step", table ? nlohmann::json(checkpoint.step) : nlohmann::json()},
                            {"picture", out},
                            {"views", drawn}};
  std::string text = cat("sample {} ({}){} at epoch {}: {}\n", o.sample, data->name(sample),
                         sample == o.sample ? "" : cat(", unreadable, replaced by {}", sample), o.epoch, out);
  if (neighbor >= 0)
    text += cat("  neighbour {} ({}), by the table of step {}\n", neighbor, data->name(neighbor), checkpoint.step);
  for (const nlohmann::json& view : drawn) text += cat("  {}\n", json_line(view));
  answer(o.common, json, text);
  return 0;
}

int run(const Options& o) {
  start(o.common);
  if (!fs::is_directory(o.run)) throw Error(cat("--run {}: no such folder", o.run));
  const bool by_sample = o.epoch != kNone || o.sample != kNone;
  if (by_sample == (o.step != kNone)) throw UsageError("give --step S, or --epoch E and --sample N");
  if (by_sample) return replay_sample(o);
  if (o.step < 1) throw UsageError(cat("--step {}: steps are counted from 1", o.step));
  return replay_one_step(o);
}

}  // namespace

Command replay_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  app.add_option("--run", o->run, "Run folder")->type_name("DIR")->required();
  app.add_option("--step", o->step,
                 "Run this step again, counted from 1 as in metrics.jsonl: loss terms, and the first "
                 "op that makes a NaN or an infinity")
      ->type_name("S");
  app.add_option("--epoch", o->epoch, "With --sample: the epoch, from 0")->type_name("E");
  app.add_option("--sample", o->sample, "Draw this image's views of that epoch, with what was drawn for them")
      ->type_name("N");
  app.add_option("--data", o->data, "The run's images, where they have moved (default: as the run names them)")
      ->type_name("SPEC");
  app.add_option("--out", o->out, "Of --sample: the picture (default: sample_N_epoch_E.png)")->type_name("FILE.png");
  app.add_option("--device", o->device, "auto | cpu | cuda | cuda:N")->type_name("NAME")->capture_default_str();
  add_common_options(app, o->common);
  app.footer(
      "Examples: csml replay --run runs/a --step 1234\n"
      "          csml replay --run runs/a --epoch 3 --sample 17 --out views.png\n"
      "A step starts from its capture (runs/a/captures, kept where a gradient was not finite), else from the newest\n"
      "checkpoint before it; the steps between are done again. One process replays the steps of many, to rounding.\n"
      "A picture shows the image, its neighbour where a neighbour table is there, then the views; the table is that "
      "of\n"
      "the newest checkpoint, which is the epoch's own until the next search.");
  return [o] { return run(*o); };
}

}  // namespace csml
