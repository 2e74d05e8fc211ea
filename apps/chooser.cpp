#include "apps/chooser.h"

#include <algorithm>
#include <cmath>

#include "kernels/check.h"

namespace csml {
namespace {

constexpr double kOverhead = 1.15;  // evaluations, checkpoints and neighbour searches, as a factor of the steps' time
constexpr double kGiB = 1073741824;

struct Network {
  int depth;
  const char* stem;
  int width, view;
};

/// From the largest to the smallest.
constexpr Network kCardNetworks[] = {{50, "imagenet", 64, 224},
                                     {18, "imagenet", 64, 224},
                                     {18, "imagenet", 64, 128},
                                     {18, "imagenet", 64, 96},
                                     {18, "imagenet", 64, 64}};
constexpr Network kCpuNetworks[] = {{18, "imagenet", 64, 128},
                                    {18, "imagenet", 64, 96},
                                    {18, "imagenet", 64, 64},
                                    {18, "imagenet", 32, 64},
                                    {18, "imagenet", 16, 64}};
/// For images of at most 48 pixels, whose maps the usual first layers would make too small.
constexpr Network kSmallImages[] = {{18, "cifar", 64, 32}, {18, "cifar", 32, 32}, {18, "cifar", 16, 32}};
constexpr int kSmallSide = 48;

/// Passes over the images that a choice should allow: features of few images need many.
int wanted_epochs(int64_t images) { return static_cast<int>(std::clamp<int64_t>(400000 / images, 10, 100)); }

std::vector<Network> candidates(const Facts& f) {
  std::vector<Network> all;
  if (f.short_side <= kSmallSide) {
    all.assign(std::begin(kSmallImages), std::end(kSmallImages));
    const int side = std::max(16, f.short_side / 4 * 4);
    for (Network& n : all) n.view = std::min(n.view, side);
    return all;
  }
  if (f.card)
    all.assign(std::begin(kCardNetworks), std::end(kCardNetworks));
  else
    all.assign(std::begin(kCpuNetworks), std::end(kCpuNetworks));
  // A view larger than the image only repeats pixels.
  std::erase_if(all, [&](const Network& n) { return n.view > std::max(64, f.short_side); });
  return all;
}

double epochs_within(const Facts& f, const Network& n, const std::string& method) {
  const double image = step_flop(method, n.depth, n.stem, n.width, n.view) / f.flop_per_second;
  return f.hours * 3600 / (image * static_cast<double>(f.images) * kOverhead);
}

Network choose_network(const Facts& f) {
  const std::vector<Network> all = candidates(f);
  for (const Network& n : all)
    if (epochs_within(f, n, "moco") >= wanted_epochs(f.images)) return n;
  return all.back();
}

struct Batch {
  int size, group;
};

/// At least four batches an epoch, whole batch-norm groups, and half of the memory.
Batch choose_batch(const Facts& f, const Network& n, const std::string& method) {
  const double image = step_bytes(method, n.depth, n.stem, n.width, n.view) * (f.card ? 0.5 : 1);
  int64_t size = f.card ? 256 : f.images < 5000 ? 64 : 128;
  while (size > 16 && (size > f.images / 4 || image * static_cast<double>(size) > 0.5 * static_cast<double>(f.memory)))
    size /= 2;
  if (size > f.images / 4) size = std::max<int64_t>(4, f.images / 4 / 2 * 2);
  const int group = f.card ? 32 : 16;
  return {static_cast<int>(size), size % group == 0 ? group : 0};
}

int64_t choose_queue(const Facts& f, const std::string& method, int batch) {
  const int64_t most = method == "csml" ? f.images / 20 : f.images / 2;
  return std::clamp<int64_t>(most / batch * batch, batch, 65536 / batch * batch);
}

int choose_workers(const Facts& f, double images_per_second) {
  const double busy = 2 * f.decode_seconds * images_per_second;  // cores that decoding takes, twice for good measure
  const double most = std::max(1.0, f.card ? std::floor(f.cores) - 1 : std::floor(f.cores / 2));
  return static_cast<int>(std::clamp(std::ceil(busy), 1.0, std::min(most, 32.0)));
}

std::string number(double x) { return cat("{:.2g}", x); }

}  // namespace

double step_flop(const std::string& method, int depth, const std::string& stem, int width, int view) {
  const double passes = method == "csml" ? 11 : 4, wide = width / 64.0, side = view / 224.0;
  return 2 * passes * (depth == 50 ? 4.1e9 : 1.82e9) * wide * wide * side * side * (stem == "cifar" ? 15 : 1);
}

double step_bytes(const std::string& method, int depth, const std::string& stem, int width, int view) {
  const double anchors = method == "csml" ? 3 : 1, side = view / 224.0;
  return anchors * (depth == 50 ? 360e6 : 90e6) * (width / 64.0) * side * side * (stem == "cifar" ? 8 : 1);
}

Chosen choose(const Facts& f) {
  if (f.images < 16)
    throw UsageError(
        cat("{} images are too few to choose a recipe for: no batch has enough of them; give at least 16, "
            "better some thousands",
            f.images));
  CHECK(f.flop_per_second > 0 && f.hours > 0 && f.short_side > 0, "facts are not whole");
  const Network n = choose_network(f);
  // CsMl's neighbours help once features are good: in short runs of few images MoCo alone was the better one
  // (docs/results.md).
  constexpr int kManyEpochs = 200, kManyImages = 10000;
  const bool csml = f.images >= kManyImages && epochs_within(f, n, "csml") >= kManyEpochs;
  const std::string method = !f.method.empty() ? f.method : csml ? "csml" : "moco";
  const double within = epochs_within(f, n, method);
  const int epochs = static_cast<int>(std::clamp(std::floor(within), 1.0, 800.0));
  const Batch batch = choose_batch(f, n, method);
  const int64_t queue = choose_queue(f, method, batch.size);
  const double rate = f.flop_per_second / step_flop(method, n.depth, n.stem, n.width, n.view);
  const int workers = choose_workers(f, rate);
  const double steps = static_cast<double>(epochs) * static_cast<double>(f.images / batch.size);
  const bool wide_view = n.view >= 96;
  const std::string momentum = steps < 20000 ? "0.99" : steps < 100000 ? "0.996" : "0.999";
  const int resize = n.view <= kSmallSide ? n.view : n.view * 8 / 7;

  Chosen c;
  const auto set = [&](const char* key, const std::string& value) { c.values.emplace_back(key, value); };
  set("data.workers", cat("{}", workers));
  set("augment.crop_size", cat("{}", n.view));
  set("augment.scale_min", "0.2");
  set("augment.blur_p", wide_view ? "0.5" : "0.0");
  if (f.gray) {
    set("augment.saturation", "0.0");
    set("augment.hue", "0.0");
    set("augment.gray_p", "0.0");
  }
  set("model.depth", cat("{}", n.depth));
  set("model.stem", n.stem);
  set("model.width", cat("{}", n.width));
  set("method.name", method);
  set("method.momentum", momentum);
  set("method.temperature", f.card ? "0.2" : "0.1");
  set("method.queue", cat("{}", queue));
  set("method.bn_group_size", cat("{}", batch.group));
  set("optimizer.weight_decay", f.card ? "1e-4" : "5e-4");
  set("schedule.lr", f.card ? "0.06" : "0.12");
  set("train.epochs", cat("{}", epochs));
  set("train.batch_size", cat("{}", batch.size));
  set("train.precision", f.card ? "bf16" : "fp32");
  set("eval.resize", cat("{}", resize));
  set("eval.size", cat("{}", n.view));
  set("eval.knn_every_epochs", cat("{}", std::max(1, epochs / 20)));
  c.hours = f.hours * epochs / within;

  const auto say = [&](std::string what, std::string choice, std::string why, std::string change) {
    c.reasons.push_back({std::move(what), std::move(choice), std::move(why), std::move(change)});
  };
  say("network",
      cat("ResNet-{}{}{}", n.depth, n.width == 64 ? "" : cat(", {} wide", n.width),
          n.stem == std::string("cifar") ? ", 3x3 stem" : ""),
      within < wanted_epochs(f.images)
          ? "the smallest of those here, as the time is short"
          : cat("the largest here with {} passes in {:.3g} h", wanted_epochs(f.images), f.hours),
      "--set model.depth=, model.width=");
  say("views", cat("{} pixels", n.view), cat("images have {} on their short side", f.short_side),
      "--set augment.crop_size=");
  say("colour", f.gray ? "jitter of brightness alone" : "jitter and gray",
      f.gray ? "the images are gray" : "the images have colour", "--set augment.hue=, augment.gray_p=");
  say("method", method,
      !f.method.empty() ? "asked for"
      : csml            ? "enough images and passes for neighbours"
                        : "better than csml in short runs",
      "--method");
  say("batch", cat("{} images", batch.size),
      cat("{} images, {:.3g} GiB of memory", f.images, static_cast<double>(f.memory) / kGiB), "--batch-size");
  say("queue", cat("{} keys", queue),
      cat("{:.0f} % of the images", 100.0 * static_cast<double>(queue) / static_cast<double>(f.images)),
      "--set method.queue=");
  say("epochs", cat("{}", epochs), cat("{} images/s by timed steps", number(rate)), "--epochs, --hours");
  say("precision", f.card ? "bf16" : "fp32", f.card ? "tensor cores" : "processors train in fp32", "--precision");
  say("workers", cat("{}", workers), cat("decoding takes {:.1f} ms an image", 1e3 * f.decode_seconds), "--workers");
  say("time", cat("{} h", number(c.hours)), "expect -25 % to +50 %; more if other work starts", "--hours");
  if (within < wanted_epochs(f.images))
    c.warning = cat("{:.3g} h are short for {} images: {} of {} passes; --hours {} gives all", f.hours, f.images,
                    epochs, wanted_epochs(f.images), number(f.hours * wanted_epochs(f.images) / within));
  return c;
}

std::string chosen_text(const Chosen& c) {
  std::string text = "chosen for these images and this machine (a flag or --config wins over each):\n";
  size_t choices = 0, whys = 0;  // widths
  for (const Reason& r : c.reasons) choices = std::max(choices, r.choice.size()), whys = std::max(whys, r.why.size());
  for (const Reason& r : c.reasons)
    text += cat("  {:<10}{:<{}}  {:<{}}  {}\n", r.what, r.choice, choices, r.why, whys, r.change);
  if (!c.warning.empty()) text += cat("  note: {}\n", c.warning);
  return text;
}

}  // namespace csml
