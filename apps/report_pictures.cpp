#include "apps/report_pictures.h"

#include <algorithm>
#include <cmath>

#include "apps/feature_source.h"
#include "apps/html.h"
#include "apps/picture.h"
#include "csml/method/views.h"
#include "csml/training/neighbors.h"
#include "csml/training/run_state.h"
#include "engine/ops.h"

namespace csml {
namespace {

constexpr int kLargestSide = 144;  // short side of an embedded photograph, pixels

/// A picture with a caption; small images keep their pixels visible.
std::string picture(const ImageView& image, const std::string& caption, const std::string& style = "") {
  Image reduced;
  ImageView shown = image;
  if (std::min(image.height, image.width) > kLargestSide) {
    const double share = static_cast<double>(kLargestSide) / std::min(image.height, image.width);
    const int height = std::max(1, static_cast<int>(std::lround(image.height * share)));
    const int width = std::max(1, static_cast<int>(std::lround(image.width * share)));
    ResizeScratch scratch;
    reduced.reset(height, width, image.channels);
    resize(image, height, width, Filter::bilinear, reduced.data(), scratch);
    shown = reduced.view();
  }
  const bool small = std::max(shown.height, shown.width) <= 96;
  return cat("<div class=\"picture {}\"><img class=\"{}\" alt=\"{}\" src=\"{}\"><span>{}</span></div>", style,
             small ? "pixels" : "", escape_html(caption), png_data_uri(shown), escape_html(caption));
}

std::string original(const Dataset& data, int64_t index, const std::string& caption, const std::string& style = "") {
  try {
    const Image image = data.load(index);
    return picture(image.view(), caption, style);
  } catch (const Error&) {  // the run replaced it, the report says so
    return cat("<div class=\"picture {}\"><div class=\"unreadable\">unreadable</div><span>{}</span></div>", style,
               escape_html(caption));
  }
}

std::string label_text(const Dataset& data, int64_t index) {
  const int label = data.label(index);
  return label < 0 ? "" : data.class_names()[static_cast<size_t>(label)];
}

std::string limited(const std::string& spec, int limit) {
  if (spec.find("limit=") != std::string::npos) return spec;
  return cat("{}{}limit={}", spec, spec.find('?') == std::string::npos ? "?" : "&", limit);
}

}  // namespace

std::string views_html(Device& device, const Config& config, const Checkpoint& checkpoint,
                       const PictureOptions& options) {
  const auto data = open_dataset(options.data);
  AugmentConfig augment = config.augment;
  augment.channels = data->channels();
  const auto table = config.method.name == "csml" ? neighbor_table_of(checkpoint, data->size()) : nullptr;
  const std::vector<std::string> names{"q", "k", "p", "k′"};
  std::vector<ViewSpec> specs;
  for (uint32_t v = 0; v < (table ? 4u : 2u); ++v)
    specs.push_back({v < 2 ? ViewSpec::Source::own : ViewSpec::Source::neighbor, augment, v});

  const int count = static_cast<int>(std::min<int64_t>(options.samples, data->size()));
  const int64_t epoch = std::max<int64_t>(0, checkpoint.epoch - 1);
  LoaderOptions loader_options;
  loader_options.seed = config.train.seed;
  loader_options.workers = 0;
  loader_options.batch_size = count;
  loader_options.max_bad_share = 1;
  Loader loader(*data, specs, loader_options);
  loader.start_epoch(epoch, 0, table);
  Batch batch;
  if (!loader.next(batch)) throw Error(cat("{} holds no batch", data->describe()));

  std::vector<std::vector<Image>> drawn;
  std::vector<Tensor> tensors;
  for (size_t v = 0; v < specs.size(); ++v) {
    ViewInput input(device, count, specs[v]);
    input.upload(batch.views[v]);
    tensors.push_back(input.images());
    drawn.push_back(to_images(tensors.back(), augment));
  }
  std::string mixed_name;
  if (table) {
    const int64_t step = epoch * (data->size() / config.train.batch_size);
    const CutMixDraw mix = draw_cutmix(config.train.seed, static_cast<uint64_t>(step), augment.crop_size,
                                       static_cast<float>(config.method.cutmix_alpha));
    const Tensor box = Tensor::from(device, {4}, std::vector<int32_t>(mix.box.begin(), mix.box.end()));
    drawn.push_back(to_images(cut_mix(tensors[0], tensors[2], box), augment));
    mixed_name = cat("m: CutMix(q, p), λ = {:.2f}", mix.lambda);
  }
  std::string html = cat(
      "<p>Views as the first step of epoch {} draws them: q, which the trained encoder sees, and k, the key's, of the "
      "sample{}.</p>\n",
      epoch, table ? ", p and k′ of a neighbour drawn for it, m the mixture of q and p" : "");
  for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
    html += "<div class=\"row\">" + original(*data, batch.samples[i],
                                             cat("sample {} {}", batch.samples[i], label_text(*data, batch.samples[i])),
                                             "query");
    for (size_t v = 0; v < specs.size(); ++v) {
      if (v == 2)
        html += original(*data, batch.neighbors[i],
                         cat("neighbour {} {}", batch.neighbors[i], label_text(*data, batch.neighbors[i])), "query");
      html += picture(drawn[v][i].view(), names[v]);
    }
    if (table) html += picture(drawn.back()[i].view(), mixed_name);
    html += "</div>\n";
  }
  return html;
}

std::string neighbors_html(Device& device, const Checkpoint& checkpoint, const PictureOptions& options) {
  const auto data = open_dataset(limited(options.data, options.images));
  FeatureSourceOptions source_options;
  source_options.checkpoint = checkpoint.folder.string();
  source_options.encoder = options.encoder;
  const FeatureSource source(device, source_options, *data);
  const Features features = source.extract(*data, "report features");
  const int k = static_cast<int>(std::min<int64_t>(options.neighbors, data->size() - 1));
  if (k < 1) throw Error("one image has no neighbours");
  std::vector<float> similarity;
  const NeighborTable table = nearest_neighbors(features.values, k, &similarity);
  const double purity = neighbor_purity(table, features.labels);

  // One image of every class first; without labels, images spread over the set.
  std::vector<int64_t> queries;
  std::vector<bool> seen(static_cast<size_t>(data->class_count()));
  for (int64_t i = 0; i < data->size() && static_cast<int>(queries.size()) < options.samples; ++i) {
    const int label = data->label(i);
    if (label >= 0 && !seen[static_cast<size_t>(label)]) {
      seen[static_cast<size_t>(label)] = true;
      queries.push_back(i);
    }
  }
  for (int i = 0; queries.size() < static_cast<size_t>(options.samples) && !data->has_labels(); ++i)
    queries.push_back(i * data->size() / options.samples);
  std::string html = cat(
      "<p>Nearest among {} images by cosine: {}.{}</p>\n", data->size(), escape_html(source.protocol()),
      purity < 0 ? std::string()
                 : cat(" {:.1f} % of all neighbours have the image's own label; the green ones below.", 100 * purity));
  for (const int64_t query : queries) {
    html += "<div class=\"row\">" + original(*data, query, label_text(*data, query), "query");
    for (int j = 0; j < k; ++j) {
      const size_t at = static_cast<size_t>(query * k + j);
      const int64_t other = table.index[at];
      const bool known = data->label(query) >= 0 && data->label(other) >= 0;
      html += original(*data, other, cat("{} {:.2f}", label_text(*data, other), similarity[at]),
                       !known                                     ? ""
                       : data->label(query) == data->label(other) ? "same"
                                                                  : "other");
    }
    html += "</div>\n";
  }
  return html;
}

}  // namespace csml
