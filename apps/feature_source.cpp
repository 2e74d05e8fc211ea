#include "apps/feature_source.h"

#include <cmath>
#include <optional>

#include "engine/log.h"

namespace csml {
namespace {

constexpr int kLargestAsIs = 64;  // square images up to this side are compared pixel by pixel as they are
constexpr int kPixelSide = 32;    // others are reduced to it

BadImageCallback name_bad_images() {
  return [](const std::string& path, const std::string& reason) {
    log_warn(cat("{}: {}; its features are those of a black image", path, reason));
  };
}

void add_feature_options(CLI::App& app, FeatureSourceOptions& options, const std::string& encoder) {
  options.encoder = encoder;
  app.add_option("--checkpoint", options.checkpoint,
                 "Run folder, checkpoint folder or torchvision-named .safetensors file")
      ->type_name("PATH");
  app.add_option("--features", options.features,
                 "backbone (pooled trunk) | projection (head's output) | pixels (no encoder)")
      ->check(CLI::IsMember({"backbone", "projection", "pixels"}))
      ->type_name("WHAT")
      ->capture_default_str();
  app.add_option("--encoder", options.encoder, "q (trained) | k (its moving average) | init (untrained)")
      ->check(CLI::IsMember({"q", "k", "init"}))
      ->type_name("WHICH")
      ->capture_default_str();
  app.add_option("--resize", options.resize, "Short side before the crop, pixels; 0: as they are [checkpoint's]")
      ->check(CLI::Range(0, 4096))
      ->type_name("N");
  app.add_option("--size", options.size, "Central crop, pixels [checkpoint's]")
      ->check(CLI::Range(8, 4096))
      ->type_name("N");
  app.add_option("--interpolation", options.interpolation, "bilinear | bicubic [checkpoint's]")
      ->check(CLI::IsMember({"bilinear", "bicubic"}))
      ->type_name("HOW");
  app.add_option("--device", options.device, "auto | cpu | cuda | cuda:N")->type_name("NAME")->capture_default_str();
  app.add_option("--eval-batch-size", options.batch_size, "Images per forward pass [checkpoint's]")
      ->check(CLI::Range(1, 65536))
      ->type_name("N");
  app.add_option("--workers", options.workers, "Loader threads")
      ->check(CLI::Range(0, 1024))
      ->type_name("N")
      ->capture_default_str();
}

/// Opens a SPEC that must have labels (`why` needs them).
std::unique_ptr<Dataset> open_with_labels(const std::string& spec, const std::string& why) {
  std::unique_ptr<Dataset> dataset = open_dataset(spec);
  if (!dataset->has_labels()) throw Error(cat("{} needs labels; {} has none", why, dataset->describe()));
  return dataset;
}

}  // namespace

void add_data_options(CLI::App& app, DataOptions& options, const std::string& encoder) {
  app.add_option("--data", options.data, "SPEC of the images")->type_name("SPEC")->required();
  add_feature_options(app, options.source, encoder);
  add_common_options(app, options.common);
}

void add_labelled_options(CLI::App& app, LabelledOptions& options, bool files) {
  CLI::Option* train = app.add_option("--train", options.train, "SPEC of the labelled images to learn from");
  CLI::Option* test = app.add_option("--test", options.test, "SPEC of the labelled images to classify");
  for (CLI::Option* side : {train, test}) side->type_name("SPEC")->required(!files);
  if (files) {
    app.add_option("--train-features", options.train_features,
                   "File of csml embed with the features to learn from; then no --checkpoint, --train and --test")
        ->type_name("FILE");
    app.add_option("--test-features", options.test_features, "File of csml embed with the features to classify")
        ->type_name("FILE");
  }
  add_feature_options(app, options.source, "q");
  add_keep_option(app, options.common);
  add_common_options(app, options.common);
}

nlohmann::json LabelledSets::describe(const LabelledOptions& options) const {
  return {{"train", options.train}, {"test", options.test}, {"n_train", train->size()}, {"n_test", test->size()}};
}

LabelledSets open_labelled(const LabelledOptions& options, const std::string& command) {
  for (const auto& [spec, flag] : {std::pair{&options.train, "--train"}, {&options.test, "--test"}})
    if (spec->empty()) throw UsageError(cat("{} needs {} SPEC", command, flag));
  LabelledSets sets{open_with_labels(options.train, cat("--train of {}", command)),
                    open_with_labels(options.test, cat("--test of {}", command))};
  sets.test->use_classes_of(*sets.train);
  return sets;
}

FeatureSource::FeatureSource(Device& device, const FeatureSourceOptions& options, const Dataset& reference)
    : device_(device), asked_(options) {
  features_.workers = options.workers;
  features_.on_bad_image = name_bad_images();
  EvalTransform& transform = features_.transform;
  if (options.features == "pixels") {
    if (!options.checkpoint.empty()) throw UsageError("--features pixels takes no --checkpoint");
    LoadScratch scratch;
    const ImageView first = reference.view(0, scratch);
    const bool as_is = options.size == 0 && first.height == first.width && first.height <= kLargestAsIs;
    transform.size = options.size ? options.size : as_is ? first.height : kPixelSide;
    transform.resize = as_is ? 0 : transform.size;
    transform.filter = Filter::bicubic;
    features_.batch_size = 256;
  } else {
    if (options.checkpoint.empty())
      throw UsageError("--checkpoint PATH is needed (or --features pixels, which needs none)");
    model_ = load_model(device, options.checkpoint, options.encoder);
    const EvalConfig& eval = model_.config.eval;
    transform = {eval.resize, eval.size, eval.interpolation == "bilinear" ? Filter::bilinear : Filter::bicubic};
    if (options.size) {
      // A crop larger than the short side would be padding: the resize follows unless it was asked for.
      transform.resize = transform.resize == 0 ? options.size : std::max(transform.resize, options.size);
      transform.size = options.size;
    }
    features_.normalise = model_.config.augment;
    features_.batch_size = eval.batch_size;
    features_.projection = options.features == "projection";
    if (features_.projection && !model_.has_head)
      throw UsageError(
          cat("{} holds no projection head that csml knows (fc.0, fc.2, …); use --features backbone", model_.source));
  }
  if (options.resize >= 0) transform.resize = options.resize;
  if (!options.interpolation.empty())
    transform.filter = options.interpolation == "bilinear" ? Filter::bilinear : Filter::bicubic;
  if (options.batch_size) features_.batch_size = options.batch_size;
  if (transform.resize != 0 && transform.resize < transform.size)
    throw UsageError(
        cat("--resize {} is smaller than the central crop of {}; give --size too", transform.resize, transform.size));
  if (options.features == "pixels") standardise(reference);
}

void FeatureSource::standardise(const Dataset& reference) {
  LoaderOptions loader_options;
  loader_options.workers = features_.workers;
  loader_options.batch_size = features_.batch_size;
  EvalLoader loader(reference, features_.transform, loader_options);
  loader.start();
  const auto channels = static_cast<size_t>(reference.channels());
  std::array<uint64_t, 4> sum{}, squares{};
  uint64_t count = 0;
  EvalBatch batch;
  while (loader.next(batch)) {
    for (size_t i = 0; i < batch.images.size(); ++i) {
      const uint64_t value = batch.images[i];
      sum[i % channels] += value;
      squares[i % channels] += value * value;
    }
    count += batch.images.size() / channels;
  }
  for (size_t c = 0; c < channels; ++c) {
    const double mean = static_cast<double>(sum[c]) / static_cast<double>(count) / 255;
    const double square = static_cast<double>(squares[c]) / static_cast<double>(count) / (255.0 * 255.0);
    features_.normalise.mean[c] = static_cast<float>(mean);
    features_.normalise.std[c] = static_cast<float>(std::max(1e-3, std::sqrt(std::max(0.0, square - mean * mean))));
  }
}

Features FeatureSource::extract(const Dataset& dataset, const std::string& label, bool l2_normalise) const {
  if (dataset.size() == 0) throw Error(cat("the data set is empty: {}", dataset.describe()));
  FeatureOptions options = features_;
  options.l2_normalise = l2_normalise;
  Progress progress(label, dataset.size(), "images");
  options.progress = [&](int64_t done, int64_t) { progress.update(done); };
  if (!model_.encoder) {
    Features features = pixel_features(device_, dataset, options);
    progress.finish();
    return features;
  }
  check_channels(dataset);
  Features features = extract_features(device_, *model_.encoder, dataset, options);
  progress.finish();
  return features;
}

int64_t FeatureSource::dim(const Dataset& dataset) const {
  if (model_.encoder) return features_.projection ? model_.encoder->project_dim() : model_.encoder->feature_dim();
  return int64_t{features_.transform.size} * features_.transform.size * dataset.channels();
}

void FeatureSource::check_channels(const Dataset& dataset) const {
  if (dataset.channels() == model_.in_channels) return;
  throw UsageError(cat("{} takes images of {} channel{}, {} has {}; add ?channels={} to its SPEC", model_.source,
                       model_.in_channels, model_.in_channels == 1 ? "" : "s", dataset.describe(), dataset.channels(),
                       model_.in_channels));
}

nlohmann::json FeatureSource::describe() const {
  nlohmann::json json{{"features", asked_.features},
                      {"encoder", model_.encoder ? nlohmann::json(model_.which) : nlohmann::json()},
                      {"checkpoint", model_.encoder ? nlohmann::json(model_.source) : nlohmann::json()},
                      {"resize", features_.transform.resize},
                      {"size", features_.transform.size}};
  if (model_.encoder) json["checkpoint_xxh3_128"] = model_.content;
  if (model_.encoder) json["step"] = model_.step, json["epoch"] = model_.epoch;
  return json;
}

std::string FeatureSource::protocol() const {
  const EvalTransform& t = features_.transform;
  const std::string images = t.resize == 0 ? cat("images as they are, {} px", t.size)
                                           : cat("short side {} px ({}), central crop {} px", t.resize,
                                                 t.filter == Filter::bicubic ? "bicubic" : "bilinear", t.size);
  if (!model_.encoder) return cat("pixels standardised per channel, {}", images);
  return cat("frozen {} features of encoder {}, running statistics, {}",
             asked_.features == "backbone" ? "pooled backbone" : "projection", model_.which, images);
}

}  // namespace csml
