// The fast JPEG decoder: byte-identical to libjpeg for whole images and for regions, in every sampling; what it refuses
// is judged by libjpeg, whatever the region.
#include "data/decode.h"

#include "tests/files.h"

#include <cstdio>

#include <jpeglib.h>
#include <cstdlib>

#include "kernels/random.h"

using namespace csml;
namespace fs = std::filesystem;

namespace {

using Bytes = std::vector<uint8_t>;

struct Encoding {
  int channels = 3, h = 1, v = 1, quality = 90, restart_interval = 0;
  bool progressive = false, optimised = false;
};

/// A picture with smooth parts, edges and noise.
Bytes encode(int height, int width, const Encoding& e, uint64_t seed) {
  jpeg_compress_struct info;
  jpeg_error_mgr errors;
  info.err = jpeg_std_error(&errors);
  jpeg_create_compress(&info);
  unsigned char* memory = nullptr;
  unsigned long size = 0;
  jpeg_mem_dest(&info, &memory, &size);
  info.image_height = static_cast<JDIMENSION>(height);
  info.image_width = static_cast<JDIMENSION>(width);
  info.input_components = e.channels;
  info.in_color_space = e.channels == 1 ? JCS_GRAYSCALE : JCS_RGB;
  jpeg_set_defaults(&info);
  jpeg_set_quality(&info, e.quality, TRUE);
  info.comp_info[0].h_samp_factor = e.h;
  info.comp_info[0].v_samp_factor = e.v;
  info.restart_interval = static_cast<unsigned>(e.restart_interval);
  info.optimize_coding = e.optimised;
  if (e.progressive) jpeg_simple_progression(&info);
  jpeg_start_compress(&info, TRUE);
  Random random(seed, Purpose::test);
  Bytes row(static_cast<size_t>(width) * static_cast<size_t>(e.channels));
  for (int y = 0; y < height; ++y) {
    for (size_t i = 0; i < row.size(); ++i) {
      const int x = static_cast<int>(i) / e.channels, c = static_cast<int>(i) % e.channels;
      const int smooth = (2 * x + 3 * y + 60 * c) % 256, noise = static_cast<int>(random.below(256));
      row[i] = static_cast<uint8_t>(x / 24 % 3 == 0 ? smooth : (y / 16 + x / 24) % 2 ? noise : 255 * ((x + y) / 9 % 2));
    }
    JSAMPROW rows[1] = {row.data()};
    jpeg_write_scanlines(&info, rows, 1);
  }
  jpeg_finish_compress(&info);
  Bytes bytes(memory, memory + size);
  jpeg_destroy_compress(&info);
  std::free(memory);
  return bytes;
}

/// libjpeg's own decode with its default settings, as RGB.
Bytes reference(const Bytes& bytes) {
  jpeg_decompress_struct info;
  jpeg_error_mgr errors;
  info.err = jpeg_std_error(&errors);
  jpeg_create_decompress(&info);
  jpeg_mem_src(&info, bytes.data(), static_cast<unsigned long>(bytes.size()));
  jpeg_read_header(&info, TRUE);
  info.out_color_space = JCS_RGB;
  jpeg_start_decompress(&info);
  const size_t stride = size_t{3} * info.output_width;
  Bytes pixels(stride * info.output_height);
  while (info.output_scanline < info.output_height) {
    JSAMPROW rows[1] = {pixels.data() + stride * info.output_scanline};
    jpeg_read_scanlines(&info, rows, 1);
  }
  jpeg_finish_decompress(&info);
  jpeg_destroy_decompress(&info);
  return pixels;
}

Window draw_window(Random& random, int height, int width) {
  const auto below = [&](int n) { return static_cast<int>(random.below(static_cast<uint32_t>(n))); };
  Window w;
  w.height = 1 + below(height), w.width = 1 + below(width);
  w.y = below(height - w.height + 1), w.x = below(width - w.width + 1);
  return w;
}

/// Decodes the region over a canvas of noise and compares it with the whole picture; false: another byte.
bool region_equals(const Bytes& file, const Bytes& whole, const Window& w, Image& canvas) {
  const DecodeInfo info = decode_image(file, 3, canvas, {}, [&](int, int) { return w; });
  if (size_t{3} * static_cast<size_t>(info.height) * static_cast<size_t>(info.width) != whole.size()) return false;
  for (int y = w.y; y < w.y + w.height; ++y) {
    const size_t at = 3 * (static_cast<size_t>(y) * static_cast<size_t>(info.width) + static_cast<size_t>(w.x));
    if (std::memcmp(canvas.data() + at, whole.data() + at, 3 * static_cast<size_t>(w.width)) != 0) return false;
  }
  return true;
}

}  // namespace

TEST_CASE("regions and whole images equal libjpeg's pixels in every sampling") {
  const Encoding encodings[] = {{3, 1, 1},
                                {3, 2, 1},
                                {3, 2, 2},
                                {3, 1, 2},
                                {1, 1, 1},
                                {1, 2, 2},
                                {3, 4, 1},
                                {3, 2, 2, 30},
                                {3, 2, 2, 100},
                                {3, 1, 1, 100, 0, false, true},
                                {3, 2, 2, 85, 3},
                                {3, 1, 1, 95, 1},
                                {3, 2, 1, 75, 0, false, true},
                                {3, 2, 2, 90, 0, true},
                                {1, 1, 1, 100, 7}};
  const std::pair<int, int> extents[] = {{1, 1},   {3, 2},    {8, 8},    {9, 5},    {16, 17},
                                         {37, 53}, {64, 100}, {121, 95}, {200, 133}};
  Image canvas;
  Random random(7, Purpose::test);
  uint64_t seed = 0;
  for (const Encoding& e : encodings)
    for (auto [height, width] : extents) {
      const Bytes file = encode(height, width, e, ++seed), whole = reference(file);
      const std::string what = cat("{} channels, {} x {}, quality {}, restart {}, progressive {}: {} x {}", e.channels,
                                   e.h, e.v, e.quality, e.restart_interval, e.progressive, width, height);
      CHECK_MESSAGE(region_equals(file, whole, {0, 0, height, width}, canvas), what);
      int wrong = 0;
      for (int i = 0; i < 40; ++i) wrong += !region_equals(file, whole, draw_window(random, height, width), canvas);
      CHECK_MESSAGE(wrong == 0, what);
    }
}

TEST_CASE("a gray file in one channel") {
  const Bytes file = encode(45, 70, {1}, 1), whole = reference(file);
  Image image;
  decode_image(file, 1, image, {}, [](int, int) { return Window{5, 9, 30, 41}; });
  REQUIRE(image.channels() == 1);
  for (int y = 5; y < 35; ++y)
    for (int x = 9; x < 50; ++x) REQUIRE(image.row(y)[x] == whole[3 * static_cast<size_t>(70 * y + x)]);
}

TEST_CASE("a damaged or cut file is judged alike for every region") {
  Random random(3, Purpose::test);
  Image image;
  int accepted = 0, refused = 0;
  for (int i = 0; i < 300; ++i) {
    const Encoding e{i % 5 == 0 ? 1 : 3, 1 + i % 2, 1 + i / 2 % 2, 80, i % 3 == 0 ? 4 : 0};
    Bytes file = encode(96, 112, e, 1);
    if (i % 4 == 0) {
      file.resize(300 + random.below(static_cast<uint32_t>(file.size() - 300)));
    } else {
      for (int hits = 1 + static_cast<int>(random.below(3)); hits > 0; --hits)
        file[150 + random.below(static_cast<uint32_t>(file.size() - 150))] = static_cast<uint8_t>(random.below(256));
    }
    const std::string whole = error_of([&] { decode_image(file, 3, image); });
    (whole.empty() ? accepted : refused) += 1;
    for (const Window& w : {Window{0, 0, 8, 8}, Window{40, 30, 20, 50}, Window{90, 100, 6, 12}})
      CHECK_MESSAGE(error_of([&] { decode_image(file, 3, image, {}, [&](int, int) { return w; }); }) == whole, i);
  }
  CHECK(accepted > 50);
  CHECK(refused > 50);
}

TEST_CASE("a Huffman code of all ones is refused, as libjpeg does") {
  // One gray block: the DC table has the codes 0 and 10, or 0 and 1, of which the second is all ones.
  const auto file = [](bool all_ones) {
    Bytes bytes{0xFF, 0xD8, 0xFF, 0xDB, 0, 67, 0};
    bytes.insert(bytes.end(), 64, 1);
    const auto put = [&](std::initializer_list<int> values) {
      for (int v : values) bytes.push_back(static_cast<uint8_t>(v));
    };
    const auto put_table = [&](int which, std::initializer_list<int> lengths) {
      put({0xFF, 0xC4, 0, 19 + static_cast<int>(lengths.size()), which});
      for (int length = 1; length <= 16; ++length)
        put({static_cast<int>(std::count(lengths.begin(), lengths.end(), length))});
      for (int symbol = 0; symbol < static_cast<int>(lengths.size()); ++symbol) put({symbol});
    };
    put({0xFF, 0xC0, 0, 11, 8, 0, 8, 0, 8, 1, 1, 0x11, 0});
    all_ones ? put_table(0, {1, 1}) : put_table(0, {1, 2});
    put_table(0x10, {1});
    put({0xFF, 0xDA, 0, 8, 1, 1, 0, 0, 63, 0, 0x3F, 0xFF, 0xD9});
    return bytes;
  };
  Image image;
  CHECK(error_of([&] { decode_image(file(false), 3, image); }).empty());
  CHECK(contains(error_of([&] { decode_image(file(true), 3, image); }), "Bogus Huffman table"));
}

TEST_CASE("real photographs equal libjpeg's pixels") {
  const char* given = std::getenv("CSML_DATA");
  const fs::path archive = (given ? fs::path(given) : fs::path("../shared/data")) / "natural/imagenet_originals.tar";
  if (!fs::exists(archive)) {
    MESSAGE("skipped: natural/imagenet_originals.tar not present (set CSML_DATA)");
    return;
  }
  const Folder folder;
  const std::string command = "tar xf '" + archive.string() + "' -C '" + folder.path.string() + "'";
  REQUIRE(std::system(command.c_str()) == 0);
  Image canvas;
  Random random(11, Purpose::test);
  int files = 0;
  for (const auto& entry : fs::recursive_directory_iterator(folder.path)) {
    Bytes file;
    if (!entry.is_regular_file()) continue;
    read_file(entry.path().string(), file);
    if (file.size() < 2 || file[0] != 0xFF || file[1] != 0xD8) continue;
    const Bytes whole = reference(file);
    Window all;
    decode_image(file, 3, canvas, {}, [&](int h, int w) { return all = {0, 0, h, w}; });
    CHECK_MESSAGE(region_equals(file, whole, all, canvas), entry.path().filename().string());
    for (int i = 0; i < 3; ++i)
      CHECK_MESSAGE(region_equals(file, whole, draw_window(random, all.height, all.width), canvas),
                    entry.path().filename().string());
    ++files;
  }
  CHECK(files > 100);
}
