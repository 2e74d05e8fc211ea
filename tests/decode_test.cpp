// Decoding: formats, colours, damage, caps; resampling against Pillow's results; a corpus of malformed files.
#include "data/decode.h"
#include "data/augment.h"
#include "data/resize.h"
#include "engine/safetensors.h"

#include "tests/files.h"

#include <zlib.h>

#include <jpeglib.h>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <sstream>

using namespace csml;
namespace fs = std::filesystem;

namespace {

using Bytes = std::vector<uint8_t>;

/// A JPEG of a smooth picture. color: JCS_RGB (4:2:0 YCC), JCS_GRAYSCALE or JCS_CMYK (Adobe, inverted by the caller). apart:
/// sequential, one scan a component.
Bytes make_jpeg(int height, int width, J_COLOR_SPACE color = JCS_RGB, bool progressive = false,
                const std::function<uint8_t(int, int, int)>& value = {}, bool apart = false) {
  jpeg_compress_struct info;
  jpeg_error_mgr errors;
  info.err = jpeg_std_error(&errors);
  jpeg_create_compress(&info);
  unsigned char* memory = nullptr;
  unsigned long size = 0;
  jpeg_mem_dest(&info, &memory, &size);
  info.image_height = static_cast<JDIMENSION>(height);
  info.image_width = static_cast<JDIMENSION>(width);
  info.input_components = color == JCS_GRAYSCALE ? 1 : color == JCS_CMYK ? 4 : 3;
  info.in_color_space = color;
  jpeg_set_defaults(&info);
  jpeg_set_quality(&info, 95, TRUE);
  if (progressive) jpeg_simple_progression(&info);
  const jpeg_scan_info scans[3] = {{1, {0}, 0, 63, 0, 0}, {1, {1}, 0, 63, 0, 0}, {1, {2}, 0, 63, 0, 0}};
  if (apart) info.scan_info = scans, info.num_scans = 3;
  jpeg_start_compress(&info, TRUE);
  Bytes row(static_cast<size_t>(width) * info.input_components);
  for (int y = 0; y < height; ++y) {
    for (size_t i = 0; i < row.size(); ++i) {
      const int x = static_cast<int>(i) / info.input_components, c = static_cast<int>(i) % info.input_components;
      row[i] = value ? value(y, x, c) : static_cast<uint8_t>((2 * x + 3 * y + 60 * c) % 200 + 20);
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

void put32(Bytes& to, uint32_t v) {
  for (int shift = 24; shift >= 0; shift -= 8) to.push_back(static_cast<uint8_t>(v >> shift));
}

void put_chunk(Bytes& to, const std::string& type, const Bytes& data) {
  put32(to, static_cast<uint32_t>(data.size()));
  Bytes body(type.begin(), type.end());
  body.insert(body.end(), data.begin(), data.end());
  to.insert(to.end(), body.begin(), body.end());
  put32(to, static_cast<uint32_t>(crc32(0, body.data(), static_cast<uInt>(body.size()))));
}

/// A PNG; kind 0 gray, 2 RGB, 6 RGBA. `raw` holds filter byte and samples per row.
Bytes make_png(uint32_t height, uint32_t width, uint8_t depth, uint8_t kind, const Bytes& raw) {
  Bytes png = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n'}, header;
  put32(header, width);
  put32(header, height);
  for (uint8_t b : {depth, kind, uint8_t{0}, uint8_t{0}, uint8_t{0}}) header.push_back(b);
  put_chunk(png, "IHDR", header);
  uLongf size = compressBound(raw.size());
  Bytes packed(size);
  REQUIRE(compress(packed.data(), &size, raw.data(), raw.size()) == Z_OK);
  packed.resize(size);
  put_chunk(png, "IDAT", packed);
  put_chunk(png, "IEND", {});
  return png;
}

Bytes text(const std::string& s) { return {s.begin(), s.end()}; }

std::string decode_error(const Bytes& bytes, const DecodeLimits& limits = {}) {
  Image image;
  return error_of([&] { decode_image(bytes, 3, image, limits); });
}

/// Folder of real files named by CSML_DATA or beside the repository; empty when absent.
fs::path real_data(const std::string& part) {
  const char* given = std::getenv("CSML_DATA");
  const fs::path root = given ? fs::path(given) : fs::path("../shared/data");
  return fs::exists(root / part) ? root / part : fs::path();
}

}  // namespace

TEST_CASE("decode: JPEG in gray, RGB and progressive") {
  for (bool progressive : {false, true}) {
    Image image;
    const DecodeInfo info = decode_image(make_jpeg(37, 53, JCS_RGB, progressive), 3, image);
    CHECK(info.format == ImageFormat::jpeg);
    CHECK(info.height == 37);
    CHECK(info.width == 53);
    CHECK(info.warnings == 0);
    CHECK(image.size() == 37u * 53 * 3);
  }
  Image gray, color;
  const Bytes bytes = make_jpeg(16, 24, JCS_GRAYSCALE);
  decode_image(bytes, 1, gray);
  decode_image(bytes, 3, color);
  for (size_t i = 0; i < gray.size(); ++i)
    for (size_t c = 0; c < 3; ++c) REQUIRE(color.data()[3 * i + c] == gray.data()[i]);
  CHECK(std::abs(gray.row(5)[7] - (2 * 7 + 3 * 5 + 20)) <= 3);

  Image rgb, luminance;
  const Bytes colored = make_jpeg(16, 24);
  decode_image(colored, 3, rgb);
  decode_image(colored, 1, luminance);
  for (size_t i = 0; i < luminance.size(); ++i)
    REQUIRE(luminance.data()[i] == luma(rgb.data()[3 * i], rgb.data()[3 * i + 1], rgb.data()[3 * i + 2]));
}

TEST_CASE("decode: CMYK as Adobe writes it") {
  // Stored inverted: 255 means no ink. cyan 40 of 255 and black 100 of 255 of ink.
  const uint8_t stored[4] = {215, 255, 255, 155};
  Image image;
  decode_image(make_jpeg(16, 16, JCS_CMYK, false, [&](int, int, int c) { return stored[c]; }), 3, image);
  CHECK(std::abs(image.data()[0] - 155 * 215 / 255) <= 2);
  CHECK(std::abs(image.data()[1] - 155) <= 2);
  CHECK(std::abs(image.data()[2] - 155) <= 2);
}

TEST_CASE("decode: PNG of 8 and 16 bits, alpha dropped") {
  Image image;
  decode_image(make_png(1, 2, 8, 2, {0, 10, 20, 30, 40, 50, 60}), 3, image);
  CHECK(Bytes(image.data(), image.data() + 6) == Bytes{10, 20, 30, 40, 50, 60});
  decode_image(make_png(1, 2, 8, 6, {0, 10, 20, 30, 0, 40, 50, 60, 128}), 3, image);
  CHECK(Bytes(image.data(), image.data() + 6) == Bytes{10, 20, 30, 40, 50, 60});
  decode_image(make_png(1, 2, 16, 0, {0, 0x12, 0xFF, 0xAB, 0x01}), 1, image);
  CHECK(Bytes(image.data(), image.data() + 2) == Bytes{0x12, 0xAB});
}

TEST_CASE("decode: a PNG index outside the palette is black") {
  Bytes png = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n'}, header, raw{0, 0, 1, 7};  // three pixels, two colours
  put32(header, 3);
  put32(header, 1);
  for (uint8_t b : {8, 3, 0, 0, 0}) header.push_back(b);
  put_chunk(png, "IHDR", header);
  put_chunk(png, "PLTE", {1, 2, 3, 4, 5, 6});
  uLongf size = compressBound(raw.size());
  Bytes packed(size);
  REQUIRE(compress(packed.data(), &size, raw.data(), raw.size()) == Z_OK);
  packed.resize(size);
  put_chunk(png, "IDAT", packed);
  put_chunk(png, "IEND", {});
  Image image;
  decode_image(png, 3, image);
  CHECK(Bytes(image.data(), image.data() + 9) == Bytes{1, 2, 3, 4, 5, 6, 0, 0, 0});
}

TEST_CASE("decode: BMP and binary PNM") {
  Bytes bmp = {'B', 'M', 62, 0, 0, 0, 0, 0, 0, 0, 54, 0, 0, 0, 40, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 0, 24, 0};
  bmp.resize(54);
  for (uint8_t b : {30, 20, 10, 60, 50, 40, 0, 0}) bmp.push_back(b);
  Image image;
  decode_image(bmp, 3, image);
  CHECK(Bytes(image.data(), image.data() + 6) == Bytes{10, 20, 30, 40, 50, 60});
  Bytes rows = bmp;  // two rows, from the bottom up and from the top down
  for (uint8_t b : {3, 2, 1, 6, 5, 4, 0, 0}) rows.push_back(b);
  rows[22] = 2;
  decode_image(rows, 3, image);
  CHECK(Bytes(image.data(), image.data() + 12) == Bytes{1, 2, 3, 4, 5, 6, 10, 20, 30, 40, 50, 60});
  const std::array<uint8_t, 4> minus_two{0xFE, 0xFF, 0xFF, 0xFF};
  std::copy(minus_two.begin(), minus_two.end(), rows.begin() + 22);
  decode_image(rows, 3, image);
  CHECK(Bytes(image.data(), image.data() + 12) == Bytes{10, 20, 30, 40, 50, 60, 1, 2, 3, 4, 5, 6});
  bmp.resize(57);
  CHECK(contains(decode_error(bmp), "truncated BMP"));

  // OS/2's short header, 256 colours (b, g, r) = (i, 255 - i, 7); then only two, and an index outside.
  Bytes core = {'B', 'M', 0, 0, 0, 0, 0, 0, 0, 0, 26, 3, 0, 0, 12, 0, 0, 0, 2, 0, 1, 0, 1, 0, 8, 0};
  for (int i = 0; i < 256; ++i)
    for (int v : {i, 255 - i, 7}) core.push_back(static_cast<uint8_t>(v));
  for (uint8_t b : {255, 1, 0, 0}) core.push_back(b);
  decode_image(core, 3, image);
  CHECK(Bytes(image.data(), image.data() + 6) == Bytes{7, 0, 255, 7, 254, 1});
  Bytes two(core.begin(), core.begin() + 26 + 2 * 3);
  two[10] = 32, two[11] = 0;
  for (uint8_t b : {1, 9, 0, 0}) two.push_back(b);
  two.resize(60);
  decode_image(two, 3, image);
  CHECK(Bytes(image.data(), image.data() + 6) == Bytes{7, 254, 1, 0, 0, 0});
  two[10] = 26;
  CHECK(contains(decode_error(two), "it has no palette"));

  decode_image(text("P6 # colours\n2 1\n255\nabcdef"), 3, image);
  CHECK(Bytes(image.data(), image.data() + 6) == text("abcdef"));
  decode_image(text(std::string("P5\n2 1 65535\n\x80\x00\xFF\xFF", 17)), 1, image);
  CHECK(Bytes(image.data(), image.data() + 2) == Bytes{128, 255});
  decode_image(text("P5 2 1 10 \x05\x0A"), 3, image);
  CHECK(Bytes(image.data(), image.data() + 6) == Bytes{128, 128, 128, 255, 255, 255});
  CHECK(contains(decode_error(text("P6 2 2 255\nabcdef")), "truncated PNM"));
  CHECK(contains(decode_error(text("P5 x")), "lacks the width"));
  CHECK(contains(decode_error(text("P5 40000 40000 255\n")), "more than the limit"));
}

TEST_CASE("decode: one clear line for files that are no image") {
  CHECK(decode_error({}) == "the file is empty");
  CHECK(decode_error(text("hello, not a JPEG")) == "not an image: it begins with \"hello, n\"");
  CHECK(contains(decode_error(text("8BPS....")), "PSD is not supported"));
  CHECK(contains(decode_error({0xFF, 0xD8, 0xFF}), "truncated"));
  DecodeLimits limits;
  limits.file_bytes = 100;
  CHECK(contains(decode_error(Bytes(101, 7), limits), "larger than the limit of 100"));
}

TEST_CASE("decode: damage and truncation") {
  for (bool progressive : {false, true}) {
    const Bytes whole = make_jpeg(120, 160, JCS_RGB, progressive);
    for (size_t part : {3u, 40u, 60u, 90u}) {
      const Bytes cut(whole.begin(), whole.begin() + static_cast<ptrdiff_t>(whole.size() * part / 100));
      CHECK_MESSAGE(contains(decode_error(cut), "truncated"), part);
    }
    const Bytes half(whole.begin(), whole.begin() + static_cast<ptrdiff_t>(whole.size() / 2));
    DecodeLimits tolerant;
    tolerant.accept_truncated = true;
    Image image;
    CHECK(decode_image(half, 3, image, tolerant).warnings + progressive > 0);
  }
  // A baseline file that lacks only its end marker is whole.
  Bytes no_end = make_jpeg(32, 32);
  no_end.resize(no_end.size() - 2);
  CHECK(decode_error(no_end).empty());

  Bytes png = make_png(2, 2, 8, 0, {0, 1, 2, 0, 3, 4});
  CHECK(decode_error(png).empty());
  for (size_t size = 8; size < png.size(); ++size)
    CHECK_MESSAGE(!decode_error(Bytes(png.begin(), png.begin() + static_cast<ptrdiff_t>(size))).empty(), size);
  png[20] ^= 1;  // inside the header: its checksum is wrong
  CHECK(contains(decode_error(png), "checksum"));
}

TEST_CASE("decode: caps hold before memory is spent") {
  CHECK(contains(decode_error(make_png(40000, 40000, 8, 2, {0})), "40000 x 40000 pixels: more than the limit"));
  CHECK(contains(decode_error(make_png(1, 70000, 8, 0, {0})), "longer than the limit"));
  Bytes jpeg = make_jpeg(16, 16);
  const uint8_t start_of_frame[2] = {0xFF, 0xC0};
  const auto frame = std::search(jpeg.begin(), jpeg.end(), start_of_frame, start_of_frame + 2) - jpeg.begin();
  for (ptrdiff_t side : {frame + 5, frame + 7}) {
    jpeg[static_cast<size_t>(side)] = 40000 >> 8;
    jpeg[static_cast<size_t>(side) + 1] = 40000 & 255;
  }
  CHECK(contains(decode_error(jpeg), "40000 x 40000 pixels: more than the limit"));

  DecodeLimits limits;
  limits.scans = 2;
  CHECK(contains(decode_error(make_jpeg(64, 64, JCS_RGB, true), limits), "more scans"));
  const Bytes apart = make_jpeg(64, 64, JCS_RGB, false, {}, true);
  CHECK(decode_error(apart).empty());
  CHECK(contains(decode_error(apart, limits), "more scans"));
  limits = {};
  limits.scan_pixels = 2 * 64 * 64;  // the work of two scans
  CHECK(contains(decode_error(apart, limits), "more scans"));
  limits = {};
  limits.memory = 1000;
  CHECK(!decode_error(make_jpeg(512, 512, JCS_RGB, true), limits).empty());
  // Sixteen megabytes of zeros behind a 1 x 1 header: the inflate buffer must not grow with them.
  CHECK(!decode_error(make_png(1, 1, 8, 0, Bytes(size_t{16} << 20))).empty());
}

TEST_CASE("read_file: reasons") {
  const Folder folder;
  Bytes bytes;
  CHECK(contains(error_of([&] { read_file((folder.path / "absent").string(), bytes); }), "No such file"));
  CHECK(error_of([&] { read_file(folder.path.string(), bytes); }) == "not a regular file");
  spill(folder.path / "a", "12345");
  read_file((folder.path / "a").string(), bytes);
  CHECK(bytes == text("12345"));
  DecodeLimits limits;
  limits.file_bytes = 4;
  CHECK(contains(error_of([&] { read_file((folder.path / "a").string(), bytes, limits); }), "larger than the limit"));
}

TEST_CASE("resize: equal to Pillow on the reference cases") {
  const fs::path path = "tests/golden/augment.safetensors";
  if (!fs::exists(path)) {
    MESSAGE("skipped: tests/golden/augment.safetensors not present");
    return;
  }
  const SafetensorsFile file = SafetensorsFile::open(path);
  const auto numbers = [&](const std::string& name) {
    const NamedArray array = file.read(name);
    std::vector<int32_t> values(array.data.size() / 4);
    std::memcpy(values.data(), array.data.data(), array.data.size());
    return values;
  };
  int compared = 0;
  for (const std::string& name : file.names()) {
    if (!name.starts_with("resize/") || !name.ends_with("/image")) continue;
    const std::string prefix = name.substr(0, name.size() - 5);
    const NamedArray image = file.read(name);
    const auto box = numbers(prefix + "box"), size = numbers(prefix + "size");  // top, left, height, width
    const int h = static_cast<int>(image.shape[0]), w = static_cast<int>(image.shape[1]);
    const ImageView view{reinterpret_cast<const uint8_t*>(image.data.data()), h, w, 3, ptrdiff_t{3} * w};
    for (const char* kind : {"bilinear", "bicubic", "bilinear_box", "bicubic_box", "bilinear_one_channel"}) {
      const std::string what = kind;
      const NamedArray want = file.read(prefix + what);
      const Filter filter = what.starts_with("bilinear") ? Filter::bilinear : Filter::bicubic;
      Bytes got(want.data.size());
      ResizeScratch scratch;
      if (what.ends_with("_box")) {
        const Box edges{float(box[1]), float(box[0]), float(box[1] + box[3]), float(box[0] + box[2])};
        resize(view, edges, size[0], size[1], {0, 0, size[0], size[1]}, filter, got.data(), scratch);
      } else if (what.ends_with("one_channel")) {
        Image one(h, w, 1);
        for (size_t i = 0; i < one.size(); ++i) one.data()[i] = view.pixels[3 * i];
        resize(one.view().crop(box[0], box[1], box[2], box[3]), size[0], size[1], filter, got.data(), scratch);
      } else {
        resize(view.crop(box[0], box[1], box[2], box[3]), size[0], size[1], filter, got.data(), scratch);
      }
      CHECK_MESSAGE(std::memcmp(got.data(), want.data.data(), got.size()) == 0, prefix, what);
      ++compared;
    }
  }
  CHECK(compared >= 40);
}

TEST_CASE("resize: a window equals that part of the whole") {
  Image image(61, 83, 3);
  for (size_t i = 0; i < image.size(); ++i) image.data()[i] = static_cast<uint8_t>(i * 2654435761u >> 11);
  for (auto [height, width] : {std::pair{40, 30}, {61, 30}, {40, 83}, {61, 83}, {150, 200}})
    for (Filter filter : {Filter::bilinear, Filter::bicubic}) {
      ResizeScratch scratch;
      Bytes whole(static_cast<size_t>(height) * width * 3), part(10 * 20 * 3);
      resize(image.view(), height, width, filter, whole.data(), scratch);
      resize(image.view(), {0, 0, 83, 61}, height, width, {7, 5, 10, 20}, filter, part.data(), scratch);
      for (size_t y = 0; y < 10; ++y)
        CHECK(std::memcmp(&part[y * 60], &whole[((y + 7) * static_cast<size_t>(width) + 5) * 3], 60) == 0);
    }
  ResizeScratch scratch;
  Bytes out(12);
  CHECK(contains(error_of([&] {
                   resize(image.view(), {0, 0, 84, 61}, 2, 2, {0, 0, 2, 2}, Filter::bilinear, out.data(), scratch);
                 }),
                 "does not lie in an image"));
}

TEST_CASE("evaluation transform: torchvision's sizes") {
  const EvalTransform transform;
  EvalGeometry g = eval_geometry(transform, 375, 500);
  CHECK(g.height == 256);
  CHECK(g.width == 341);  // int(256 * 500 / 375)
  CHECK(g.crop.y == 16);
  CHECK(g.crop.x == 58);  // round(58.5) to even
  g = eval_geometry(transform, 500, 333);
  CHECK(g.height == 384);
  CHECK(g.width == 256);
  CHECK(g.crop.y == 80);
  const EvalTransform as_is{0, 32, Filter::bilinear};
  CHECK(eval_geometry(as_is, 32, 32).crop.height == 32);
  CHECK(contains(error_of([&] { eval_geometry(as_is, 28, 28); }), "28 x 28"));
}

TEST_CASE("decode: the corpus of malformed and odd files") {
  const fs::path archive = real_data("robustness/robustness.tar.xz");
  if (archive.empty()) {
    MESSAGE("skipped: robustness/robustness.tar.xz not present (set CSML_DATA)");
    return;
  }
  const Folder folder;
  const std::string command = "tar xJf '" + archive.string() + "' -C '" + folder.path.string() + "'";
  if (std::system(command.c_str()) != 0) {
    MESSAGE("skipped: robustness.tar.xz cannot be unpacked (tar and xz needed)");
    return;
  }
  // What Pillow accepts and we do not, by design, and the reverse.
  const std::map<std::string, std::string> ours = {
      {"derived/truncated_17298.jpg", "ok"},                     // lacks only its end marker
      {"jpeg_fuzz/afl_009.jpg", "ok"},                           // the same
      {"jpeg_fuzz/afl_096.jpg", "ok"},                           // damage stepped over with warnings, as djpeg does
      {"jpeg_fuzz/afl_109.jpg", "ok"},                           // the same
      {"jpeg_odd/pil_truncated_exif_dpi.jpg", "ok"},             // only its EXIF block is bad
      {"png_invalid/pil_png_decompression_dos.png", "ok"},       // the bomb is in a text chunk, which is never inflated
      {"png_invalid/pil_unknown_compression_method.png", "ok"},  // so is the unknown method
      {"derived/truncated_33050.png", "error"},                  // lacks its end chunk
      {"png_invalid/xcsn0g01.png", "error"},                     // wrong checksum of the image data
      {"jpeg_fuzz/afl_001.jpg", "error"},                        // fatal for djpeg too, as the next four are
      {"jpeg_fuzz/afl_003.jpg", "error"},
      {"jpeg_fuzz/afl_018.jpg", "error"},
      {"jpeg_fuzz/afl_073.jpg", "error"},
      {"jpeg_invalid/jd_imagetestsuite_8a9cc8eeed66aeb423a91c44111d9450.jpg", "error"},
      {"jpeg_invalid/jd_imagetestsuite_5482a54657765056f1a94116a8dbffe7.jpg", "error"},  // progressive, ends early
      {"other_format/pil_hopper_rle8.bmp", "error"},                                     // run-length coded
      {"other_format/pil_hopper_rle8_row_overflow.bmp", "error"},
  };
  std::istringstream manifest(slurp(folder.path / "robust" / "manifest.tsv"));
  std::string line;
  std::getline(manifest, line);
  int files = 0, decoded = 0, disagreements = 0;
  while (std::getline(manifest, line)) {
    std::istringstream columns(line);
    std::string name, skip, result, format, mode, extent;
    for (std::string* column : {&name, &skip, &skip, &result, &format, &mode, &extent})
      std::getline(columns, *column, '\t');
    Bytes bytes;
    Image image;
    std::string got = "ok", reason;
    DecodeInfo info;
    try {
      read_file((folder.path / "robust" / name).string(), bytes);
      info = decode_image(bytes, 3, image);
    } catch (const Error& e) {
      got = "error";
      reason = e.what();
    }
    ++files;
    decoded += got == "ok";
    std::string want = result;
    const std::map<std::string, std::string> suffix{{"GIF", "x.gif"}, {"WEBP", "x.webp"}, {"TIFF", "x.tif"}};
    if (format == "ICO" || (suffix.count(format) && !is_image_name(suffix.at(format)))) want = "error";
    if (ours.count(name)) want = ours.at(name);
    CHECK_MESSAGE(got == want, name, ": ", reason);
    disagreements += got != want;
    if (got == "ok" && result == "ok") CHECK_MESSAGE(cat("{}x{}", info.width, info.height) == extent, name);
    if (got == "error") CHECK_MESSAGE(reason.find('\n') == std::string::npos, name);
  }
  CHECK(files == 735);
  CHECK(decoded > 300);
  CHECK(disagreements == 0);
}
