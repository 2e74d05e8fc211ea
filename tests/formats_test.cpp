// WebP, TIFF and GIF: the pixels that Pillow sees (tests/golden/formats.py), and what is refused.
#include "data/dataset.h"
#include "data/decode.h"
#include "data/exif.h"
#include "data/image.h"
#include "engine/safetensors.h"
#include "engine/tensor.h"
#include "tests/files.h"
#include "tests/golden.h"

using namespace csml;
using namespace csml::test;

namespace {

using Bytes = std::vector<uint8_t>;

struct File {
  std::string name;
  ImageFormat format;
  int tolerance = 0;  // of a pixel's value
};

/// The files of a format that this build reads; says so where it does not.
std::vector<File> files() {
  const std::pair<const char*, std::vector<File>> formats[] = {{"x.webp",
                                                                {{"webp_lossy", ImageFormat::webp},
                                                                 {"webp_lossless", ImageFormat::webp},
                                                                 {"webp_alpha", ImageFormat::webp},
                                                                 {"webp_lossy_alpha", ImageFormat::webp},
                                                                 {"webp_animated", ImageFormat::webp}}},
                                                               {"x.tiff",
                                                                {{"tiff_rgb", ImageFormat::tiff},
                                                                 {"tiff_rgb_deflate", ImageFormat::tiff},
                                                                 {"tiff_gray_lzw", ImageFormat::tiff},
                                                                 {"tiff_palette", ImageFormat::tiff},
                                                                 {"tiff_bits", ImageFormat::tiff},
                                                                 {"tiff_alpha", ImageFormat::tiff},
                                                                 {"tiff_gray_alpha", ImageFormat::tiff},
                                                                 {"tiff_upside_down", ImageFormat::tiff},
                                                                 {"tiff_pages", ImageFormat::tiff}}},
                                                               {"x.gif",
                                                                {{"gif", ImageFormat::gif},
                                                                 {"gif_interlaced", ImageFormat::gif},
                                                                 {"gif_gray", ImageFormat::gif},
                                                                 {"gif_transparent", ImageFormat::gif},
                                                                 {"gif_animated", ImageFormat::gif},
                                                                 {"gif_offset", ImageFormat::gif}}}};
  std::vector<File> all;
  for (const auto& [name, list] : formats)
    if (is_image_name(name))
      all.insert(all.end(), list.begin(), list.end());
    else
      MESSAGE(cat("skipped: built without the library that reads {}", name));
  return all;
}

/// The largest difference of two images' values.
int distance(const Image& image, const Bytes& want) {
  REQUIRE(image.size() == want.size());
  int most = 0;
  for (size_t i = 0; i < want.size(); ++i) most = std::max(most, std::abs(image.data()[i] - want[i]));
  return most;
}

std::string decode_error(const Bytes& bytes, const DecodeLimits& limits = {}) {
  Image image;
  return error_of([&] { decode_image(bytes, 3, image, limits); });
}

}  // namespace

TEST_CASE("formats: the pixels are Pillow's") {
  const Golden golden("formats");
  for (const File& file : files()) {
    CAPTURE(file.name);
    const Bytes bytes = golden.values<uint8_t>(file.name + "/file");
    const Shape shape = golden.shape(file.name + "/rgb");
    Image rgb, gray;
    const DecodeInfo info = decode_image(bytes, 3, rgb);
    CHECK(info.format == file.format);
    REQUIRE(info.height == shape[0]);
    REQUIRE(info.width == shape[1]);
    CHECK(distance(rgb, golden.values<uint8_t>(file.name + "/rgb")) <= file.tolerance);
    decode_image(bytes, 1, gray);
    CHECK(distance(gray, golden.values<uint8_t>(file.name + "/gray")) <= file.tolerance);
  }
}

TEST_CASE("formats: a file that ends early is an error wherever it ends") {
  const Golden golden("formats");
  for (const File& file : files()) {
    if (file.name.ends_with("animated") || file.name == "tiff_pages") continue;  // the first frame may be whole
    const Bytes bytes = golden.values<uint8_t>(file.name + "/file");
    int accepted = 0;
    for (size_t length = 1; length < bytes.size(); length += 1 + bytes.size() / 97)
      if (decode_error({bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(length)}).empty()) ++accepted;
    CAPTURE(file.name);
    CHECK(accepted <= (file.format == ImageFormat::webp ? 0 : 1));  // the others may lack their last bytes
  }
}

TEST_CASE("formats: limits hold before pixels are made") {
  const Golden golden("formats");
  for (const File& file : files()) {
    CAPTURE(file.name);
    const Bytes bytes = golden.values<uint8_t>(file.name + "/file");
    CHECK(contains(decode_error(bytes, {.pixels = 100}), "more than the limit of 100"));
    CHECK(contains(decode_error(bytes, {.side = 20}), "a side is longer than the limit of 20"));
  }
}

TEST_CASE("formats: what is known and not read is called by its name") {
  const auto refused = [](std::string_view bytes) { return decode_error(Bytes(bytes.begin(), bytes.end())); };
  using namespace std::string_view_literals;
  CHECK(contains(refused("\0\0\0\x1C"
                         "ftypavif\0\0\0\0"sv),
                 "AVIF is not supported: convert it to JPEG or PNG"));
  CHECK(contains(refused("\0\0\0\x18"
                         "ftypheic\0\0\0\0"sv),
                 "HEIC is not supported"));
  CHECK(contains(refused("\xFF\x0A....."sv), "JPEG XL is not supported"));
  CHECK(contains(refused("RIFF\1\0\0\0WAVEfmt "sv), "not an image: it begins with \"RIFF\\x01"));
}

TEST_CASE("formats: EXIF's orientation turns a JPEG upright when asked, as Pillow does") {
  const Golden golden("formats");
  const Folder folder;
  for (int orientation = 1; orientation <= 8; ++orientation) {
    CAPTURE(orientation);
    const std::string name = cat("jpeg_turned_{}", orientation);
    const Bytes bytes = golden.values<uint8_t>(name + "/file");
    CHECK(exif_orientation(bytes) == orientation);
    spill(folder.path / "a.jpg", std::string(bytes.begin(), bytes.end()));
    const auto set = open_dataset(cat("folder:{}?exif=apply", folder.path.string()));
    const Shape shape = golden.shape(name + "/rgb");
    const Image image = set->load(0);
    REQUIRE(image.height() == shape[0]);
    REQUIRE(image.width() == shape[1]);
    CHECK(distance(image, golden.values<uint8_t>(name + "/rgb")) == 0);
    std::vector<uint8_t> packed;
    CHECK(!set->encoded(0, packed));  // the file's bytes are other pixels
    CHECK(open_dataset(folder.path.string())->load(0).height() == 21);
    for (size_t length = 0; length < bytes.size(); length += 3) {
      const int seen = exif_orientation(std::span(bytes).first(length));
      CHECK((seen == 1 || seen == orientation));
    }
  }
}
