// csml pack: any data set into a few large files (data/pack.h).
#include "data/pack.h"

#include <algorithm>
#include <optional>

#include "apps/command.h"
#include "engine/log.h"
#include "kernels/check.h"

namespace csml {
namespace {

struct Options {
  CommonOptions common;
  std::string data, out;
  bool raw = false;
  int shard_mb = 256;
};

/// An image's pixels without gaps between the rows.
void copy_pixels(const ImageView& image, std::vector<uint8_t>& pixels) {
  const auto row = static_cast<size_t>(image.width) * static_cast<size_t>(image.channels);
  pixels.resize(row * static_cast<size_t>(image.height));
  for (int y = 0; y < image.height; ++y)
    std::copy_n(image.row(y), row, pixels.begin() + static_cast<ptrdiff_t>(row) * y);
}

int run(const Options& o) {
  start(o.common);
  const auto data = open_dataset(o.data);
  PackWriter::Options options{.folder = o.out,
                              .class_names = data->class_names(),
                              .source = data->describe(),
                              .shard_bytes = static_cast<uint64_t>(o.shard_mb) << 20};
  LoadScratch scratch;
  std::vector<uint8_t> bytes;
  bool raw = o.raw;
  std::optional<PackWriter> writer;
  std::vector<std::string> unreadable;
  Progress progress("pack", data->size(), "images");
  for (int64_t i = 0; i < data->size(); ++i, progress.update(i)) {
    ImageView image;
    try {
      if (!raw && !data->encoded(i, bytes)) raw = true;  // a data set of pixels
      if (raw) image = data->view(i, scratch);
    } catch (const Error& e) {
      if (unreadable.empty()) log_warn(cat("left out: {}", e.what()));
      unreadable.push_back(data->name(i));
      continue;
    }
    if (raw) {
      if (!writer) options.height = image.height, options.width = image.width, options.channels = image.channels;
      if (image.height != options.height || image.width != options.width)
        throw UsageError(cat("{}: {} x {} pixels, the first image has {} x {}; raw pixels need one extent: add ?size=N",
                             data->name(i), image.width, image.height, options.width, options.height));
      copy_pixels(image, bytes);
    }
    if (!writer) writer.emplace(options);
    writer->add(bytes, data->label(i), data->name(i));
  }
  progress.finish();
  if (!writer) throw Error(cat("{}: no image can be read", o.data));
  writer->finish();
  answer(o.common,
         {{"task", "pack"},
          {"data", o.data},
          {"out", o.out},
          {"images", writer->images()},
          {"unreadable", unreadable},
          {"shards", writer->shards()},
          {"bytes", writer->bytes()},
          {"pixels", raw}},
         cat("pack:{}: {} images in {} shards, {} bytes{}{}\n", o.out, writer->images(), writer->shards(),
             writer->bytes(), raw ? " of raw pixels" : "",
             unreadable.empty() ? "" : cat("; {} unreadable ones left out", unreadable.size())));
  return 0;
}

}  // namespace

Command pack_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  app.add_option("data,--data", o->data, "Data set to pack")->type_name("SPEC")->required();
  app.add_option("--out", o->out, "Folder for the pack, read as pack:DIR; must not hold one")
      ->type_name("DIR")
      ->required();
  app.add_flag("--raw", o->raw,
               "Pixels instead of the files' bytes: nothing to decode, larger; needs images of one extent (?size=N)");
  app.add_option("--shard-mb", o->shard_mb, "Size of a file, MiB; one is held in memory at a time")
      ->check(CLI::Range(1, 65536))
      ->type_name("N")
      ->capture_default_str();
  add_common_options(app, o->common);
  app.footer(
      "Examples: csml pack 'folder:DIR' --out DIR.pack\n"
      "          csml pack 'folder:DIR?size=256' --raw --out DIR.pack256\n"
      "Images that cannot be read are left out and counted. csml inspect pack:DIR --verify checks every checksum.");
  return [o] { return run(*o); };
}

}  // namespace csml
