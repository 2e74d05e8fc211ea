// Writes the seeds of the fuzz targets, tests/fuzz/corpus: small files of every kind that the parsers know, by our own
// writers where there are any. On request: cmake --build build/debug --target fuzz_corpus
//   fuzz_corpus FOLDER
#include <unistd.h>
#include <zlib.h>

#include <cstdio>

#include <jpeglib.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "data/pack.h"
#include "engine/checkpoint.h"

namespace csml {
namespace {

namespace fs = std::filesystem;

fs::path root;

void seed(const std::string& target, const std::string& name, const std::string& bytes) {
  fs::create_directories(root / target);
  std::ofstream(root / target / name, std::ios::binary | std::ios::trunc) << bytes;
}

std::string bytes_of(std::initializer_list<int> values) {
  std::string bytes;
  for (int v : values) bytes += static_cast<char>(v);
  return bytes;
}

std::string big32(uint32_t v) {
  return bytes_of({static_cast<int>(v >> 24), static_cast<int>(v >> 16 & 255), static_cast<int>(v >> 8 & 255),
                   static_cast<int>(v & 255)});
}
std::string little32(uint32_t v) {
  std::string bytes = big32(v);
  return {bytes.rbegin(), bytes.rend()};
}

// ---- images --------------------------------------------------------------------------------------------------------

struct Encoding {
  int channels = 3, h = 1, v = 1, quality = 80, restart_interval = 0;
  bool progressive = false, arithmetic = false;
};

std::string jpeg(int height, int width, const Encoding& e) {
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
  info.in_color_space = e.channels == 1 ? JCS_GRAYSCALE : e.channels == 4 ? JCS_CMYK : JCS_RGB;
  jpeg_set_defaults(&info);
  jpeg_set_quality(&info, e.quality, TRUE);
  info.comp_info[0].h_samp_factor = e.h;
  info.comp_info[0].v_samp_factor = e.v;
  info.restart_interval = static_cast<unsigned>(e.restart_interval);
  info.optimize_coding = e.arithmetic ? FALSE : TRUE;  // tables of a few bytes
  info.arith_code = e.arithmetic ? TRUE : FALSE;
  if (e.progressive) jpeg_simple_progression(&info);
  jpeg_start_compress(&info, TRUE);
  std::vector<uint8_t> row(static_cast<size_t>(width * e.channels));
  for (int y = 0; y < height; ++y) {
    for (size_t i = 0; i < row.size(); ++i) {
      const int x = static_cast<int>(i) / e.channels, c = static_cast<int>(i) % e.channels;
      row[i] = static_cast<uint8_t>((x * 13 + y * 7 + c * 60 + (x * y) % 11 * 9) % 256);
    }
    JSAMPROW rows[1] = {row.data()};
    jpeg_write_scanlines(&info, rows, 1);
  }
  jpeg_finish_compress(&info);
  std::string bytes(reinterpret_cast<char*>(memory), size);
  jpeg_destroy_compress(&info);
  std::free(memory);
  return bytes;
}

void put_jpegs() {
  const std::pair<const char*, Encoding> kinds[] = {{"gray", {1}},
                                                    {"gray_2x2", {1, 2, 2}},
                                                    {"444", {3, 1, 1}},
                                                    {"422", {3, 2, 1}},
                                                    {"440", {3, 1, 2}},
                                                    {"420", {3, 2, 2}},
                                                    {"411", {3, 4, 1}},
                                                    {"420_restart", {3, 2, 2, 60, 1}},
                                                    {"444_fine", {3, 1, 1, 100}},
                                                    {"420_coarse", {3, 2, 2, 3}},
                                                    {"420_progressive", {3, 2, 2, 70, 0, true}},
                                                    {"arithmetic", {3, 2, 2, 70, 0, false, true}},
                                                    {"cmyk", {4, 1, 1, 70}}};
  for (const auto& [name, encoding] : kinds) {
    const std::string file = jpeg(19, 23, encoding);
    seed("image", cat("jpeg_{}", name), file);
    if (encoding.channels != 4) seed("baseline_jpeg", name, file);
  }
  seed("baseline_jpeg", "1x1", jpeg(1, 1, {}));
  seed("baseline_jpeg", "3x2_420", jpeg(3, 2, {3, 2, 2}));
  seed("baseline_jpeg", "no_end", [] {
    std::string file = jpeg(8, 8, {1});
    return file.substr(0, file.size() - 2);
  }());
  seed("image", "jpeg_cut", jpeg(19, 23, {}).substr(0, 300));
}

std::string png_chunk(const std::string& type, const std::string& data) {
  const std::string body = type + data;
  return big32(static_cast<uint32_t>(data.size())) + body +
         big32(static_cast<uint32_t>(
             crc32(0, reinterpret_cast<const Bytef*>(body.data()), static_cast<uInt>(body.size()))));
}

/// kind 0 gray, 2 RGB, 3 palette, 4 gray and alpha, 6 RGBA.
std::string png(uint32_t height, uint32_t width, int depth, int kind, bool interlaced) {
  const size_t samples = kind == 2 ? 3 : kind == 4 ? 2 : kind == 6 ? 4 : 1;
  std::string raw;
  if (interlaced) {
    raw.assign(2 * height * (width * samples * static_cast<size_t>(depth) / 8 + 9), '\0');
  } else {
    for (uint32_t y = 0; y < height; ++y) {
      raw += static_cast<char>(y % 5);  // every filter
      for (size_t i = 0; i < (width * samples * static_cast<size_t>(depth) + 7) / 8; ++i)
        raw += static_cast<char>(kind == 3 ? 0x11 : 31 * y + 7 * i);
    }
  }
  uLongf size = compressBound(raw.size());
  std::string packed(size, '\0');
  compress(reinterpret_cast<Bytef*>(packed.data()), &size, reinterpret_cast<const Bytef*>(raw.data()), raw.size());
  packed.resize(size);
  std::string file = bytes_of({0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n'});
  file += png_chunk("IHDR", big32(width) + big32(height) + bytes_of({depth, kind, 0, 0, interlaced ? 1 : 0}));
  if (kind == 3) file += png_chunk("PLTE", bytes_of({1, 2, 3, 200, 100, 50}));
  if (kind == 3) file += png_chunk("tRNS", bytes_of({9}));
  file += png_chunk("tEXt", "a\0b") + png_chunk("IDAT", packed.substr(0, size / 2));
  return file + png_chunk("IDAT", packed.substr(size / 2)) + png_chunk("IEND", "");
}

std::string bmp(int height, int width, int bits) {
  const int rows = std::abs(height), stride = (width * bits + 31) / 32 * 4, colours = bits <= 8 ? 1 << bits : 0;
  const int masks = bits == 16 ? 12 : 0, offset = 54 + masks + 4 * colours;
  std::string file = "BM" + little32(static_cast<uint32_t>(offset + stride * rows)) + little32(0) +
                     little32(static_cast<uint32_t>(offset));
  file += little32(40) + little32(static_cast<uint32_t>(width)) + little32(static_cast<uint32_t>(height));
  file += bytes_of({1, 0, bits, 0}) + little32(bits == 16 ? 3 : 0);
  for (int i = 0; i < 5; ++i) file += little32(0);
  if (masks) file += little32(0xF800) + little32(0x07E0) + little32(0x001F);
  for (int i = 0; i < colours; ++i) file += bytes_of({i & 255, (2 * i) & 255, (3 * i) & 255, 0});
  for (int i = 0; i < stride * rows; ++i) file += static_cast<char>(17 * i);
  return file;
}

void put_other_images() {
  for (const int depth : {1, 8, 16}) seed("image", cat("png_gray_{}", depth), png(5, 9, depth, 0, false));
  for (const int kind : {2, 4, 6}) seed("image", cat("png_kind_{}", kind), png(6, 7, 8, kind, false));
  seed("image", "png_palette_4", png(6, 7, 4, 3, false));
  seed("image", "png_rgb_16", png(6, 7, 16, 2, false));
  seed("image", "png_interlaced", png(9, 10, 8, 2, true));
  for (const int bits : {1, 4, 16, 24, 32}) seed("image", cat("bmp_{}", bits), bmp(5, 6, bits));
  seed("image", "bmp_top_down", bmp(-5, 6, 24));
  seed("image", "pgm", "P5\n# a comment\n4 3\n255\n" + std::string(12, 'x'));
  seed("image", "ppm", "P6 2 2 100 " + std::string(12, '2'));
  seed("image", "pgm_16", "P5 2 2 1000 " + std::string(8, '\1'));
  const SafetensorsFile formats = SafetensorsFile::open("tests/golden/formats.safetensors");
  for (const char* name : {"webp_lossy", "webp_lossy_alpha", "webp_animated", "tiff_gray_lzw", "tiff_palette",
                           "tiff_bits", "tiff_alpha", "gif_interlaced", "gif_transparent", "gif_animated"}) {
    const NamedArray file = formats.read(cat("{}/file", name));
    seed("image", name, std::string(reinterpret_cast<const char*>(file.data.data()), file.data.size()));
  }
}

void put_coefficients() {
  // switches, height, width, [restart interval], sampling, quantisation step, blocks: count, (place, value)…
  seed("jpeg_coefficients", "gray", bytes_of({3, 20, 25, 0, 3, 2, 0, 100, 1, 5, 1, 0, 20, 3, 0, 1, 9, 2, 17, 254}));
  seed("jpeg_coefficients", "420", bytes_of({2, 33, 40, 3, 2, 1, 0, 50, 2, 0, 3, 5, 9, 1, 1, 7}));
  seed("jpeg_coefficients", "422_restart", bytes_of({6, 33, 40, 1, 1, 4, 1, 0, 50, 2, 0, 3, 63, 255}));
  seed("jpeg_coefficients", "large", bytes_of({11, 16, 16, 0, 30, 1, 128, 3, 255, 2, 128, 3, 255, 130, 3, 255}));
}

// ---- data sets -----------------------------------------------------------------------------------------------------

std::string tar_member(const std::string& name, const std::string& content, char type = '0') {
  std::string header(512, '\0');
  header.replace(0, name.size(), name);
  header.replace(124, 11, cat("{:011o}", content.size()));
  header[156] = type;
  header.replace(257, 8,
                 std::string("ustar\0"
                             "00",
                             8));
  header.replace(148, 8, 8, ' ');
  unsigned sum = 0;
  for (char c : header) sum += static_cast<unsigned char>(c);
  header.replace(148, 7, cat("{:06o}", sum) + '\0');
  return header + content + std::string((512 - content.size() % 512) % 512, '\0');
}

void put_tars() {
  const std::string image = "P5 2 2 255\n1234", end(1024, '\0');
  seed("tar", "labelled", tar_member("a/0.pgm", image) + tar_member("a/0.cls", "3\n") + end);
  seed("tar", "folders_links",
       tar_member("a/", "", '5') + tar_member("l", "", '2') + tar_member("a/0.pgm", image) + end);
  seed("tar", "pax", tar_member("p", "16 path=b/1.pgm\n11 size=15\n", 'x') + tar_member("x", image) + end);
  seed("tar", "gnu_long",
       tar_member("././@LongLink", std::string(120, 'n') + ".pgm", 'L') + tar_member("n", image) + end);
  seed("tar", "sparse", tar_member("s", "", 'S') + end);
  seed("tar", "no_end", tar_member("0.pgm", image) + tar_member("1.pgm", image));
  seed("tar", "cut", tar_member("0.pgm", image).substr(0, 515));
}

void put_packs() {
  const fs::path folder = fs::temp_directory_path() / cat("csml_corpus_{}", ::getpid());
  for (const bool raw : {false, true}) {
    PackWriter::Options options{.folder = folder, .class_names = {"a", "b"}, .source = "seed"};
    if (raw) options.height = 1, options.width = 2, options.channels = 3;
    PackWriter writer(options);
    const std::string image = raw ? "123456" : "P5 2 2 255\n1234";
    for (const int label : {1, -1})
      writer.add({reinterpret_cast<const uint8_t*>(image.data()), image.size()}, label, cat("x{}.pgm", label));
    writer.finish();
    seed("pack", raw ? "raw_shard" : "shard",
         bytes_of({raw ? 2 : 1}) + read_text_file(folder / "shard-00000.safetensors", 1 << 20));
    seed("pack", raw ? "raw_index" : "index", bytes_of({0}) + read_text_file(folder / kPackFile, 1 << 20));
    fs::remove_all(folder);
  }
}

void put_data_sets() {
  seed("cifar", "ten", bytes_of({4, 7, 1, 2, 3}));
  seed("cifar", "hundred_gray", bytes_of({4 + 1 + 16, 3, 42, 1, 2, 3}));
  seed("cifar", "resized_named",
       bytes_of({4 + 2 + 8}) + std::string("a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n") + std::string(44, '\n') +
           bytes_of({9, 250}));
  seed("cifar", "bad_label", bytes_of({4, 10}));
  seed("cifar", "short", bytes_of({0, 7, 1, 2, 3}));
  seed("stl10", "two", bytes_of({1, 2, 1, 10, 5, 6, 7}));
  seed("stl10", "resized_gray_named", bytes_of({1 + 2 + 4 + 8, 1, 3}) + "airplane\nbird\ncar\n");
  seed("stl10", "bad_label", bytes_of({1, 1, 11}));
  seed("stl10", "short", bytes_of({0, 1, 3, 9, 9}));
  seed("list", "csv", "path,label\na.pgm,cat\n\"a.pgm\",\"a \"\"dog\"\"\"\n");
  seed("list", "marked",
       "\xEF\xBB\xBF"
       "a.pgm\t1\n");

  const std::string images = bytes_of({0, 0, 8, 3}) + big32(3) + big32(2) + big32(4) + std::string(24, 'p');
  const std::string labels = bytes_of({0, 0, 8, 1}) + big32(3) + bytes_of({0, 2, 1});
  const std::string count = bytes_of({static_cast<int>(labels.size())});
  seed("idx", "plain", bytes_of({2}) + count + labels + images);
  seed("idx", "packed", bytes_of({3}) + count + labels + images);
  seed("idx", "gray_resized", bytes_of({4 + 8}) + images);
  seed("idx", "unlabelled", bytes_of({1}) + images);
  seed("idx", "false_extent", bytes_of({0}) + bytes_of({0, 0, 8, 3}) + big32(1 << 30) + big32(2) + big32(4));
  uLongf size = 200;
  std::string packed(size, '\0');
  z_stream stream{};
  deflateInit2(&stream, 9, Z_DEFLATED, MAX_WBITS + 16, 8, Z_DEFAULT_STRATEGY);
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(images.data()));
  stream.avail_in = static_cast<uInt>(images.size());
  stream.next_out = reinterpret_cast<Bytef*>(packed.data());
  stream.avail_out = static_cast<uInt>(size);
  deflate(&stream, Z_FINISH);
  packed.resize(stream.total_out);
  deflateEnd(&stream);
  seed("idx", "gzip", bytes_of({0}) + packed);
  std::string wrong = packed;
  wrong[packed.size() - 7] ^= 1;  // of the checksum behind the data
  seed("idx", "gzip_wrong_checksum", bytes_of({0}) + wrong);
  seed("idx", "gzip_cut", bytes_of({0}) + packed.substr(0, packed.size() - 8));

  seed("list", "numbers", "# images\na.pgm 0\nb.pgm 1\r\n\na.pgm 10\n");
  seed("list", "classes", "a.pgm\tcat\na b.pgm\tdog\n");
  seed("list", "bare", "a.pgm\nb c.pgm\n");
  seed("list", "mixed", "a.pgm 0\nb.pgm\n");
  seed("list", "no_path", "a.pgm 0\n\t1\n 2\n");
  seed("list", "large_label", "a.pgm 99999999999999999999\n");

  seed("label_split", "names", "x.png\r\ny.png\nz.png\n");
  seed("label_split", "paths", "a/x.png\nb/y.png \nc/b/y.png\n");
  seed("label_split", "numbers", "0\n3\n5\n");
  seed("label_split", "outside", "6\n-1\n");
  seed("label_split", "none", "other.png\n");

  const char* const specs[] = {"synthetic:shapes",
                               "synthetic:shapes?limit=20&size=8",
                               "synthetic:shapes?split=test&limit=30&holdout=10%&part=holdout&channels=1&size=9",
                               "synthetic:shapes?limit=10?labels=none?size=4&holdout=0.5",
                               "synthetic:shapes?limit=1099511627776&size=4096",
                               "cifar10:DIR?split=val",
                               "idx:a?limti=3",
                               "foldr:a",
                               "list:/dev/null",
                               "tar:a.tar",
                               "pack:a",
                               "?split=train"};
  int number = 0;
  for (const char* spec : specs) seed("spec", cat("{:02}", number++), spec);
}

// ---- files of a run ------------------------------------------------------------------------------------------------

std::string safetensors(const std::string& header, const std::string& data) {
  return little32(static_cast<uint32_t>(header.size())) + little32(0) + header + data;
}

void put_safetensors() {
  const std::string two = R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},)"
                          R"("b":{"dtype":"U8","shape":[],"data_offsets":[8,9]}})";
  seed("safetensors", "header", bytes_of({9}) + two);
  seed("safetensors", "file", safetensors(two, "123456789"));
  seed("safetensors", "empty", safetensors("{}", ""));
  seed("safetensors", "gap", bytes_of({9}) + R"({"a":{"dtype":"I64","shape":[1],"data_offsets":[1,9]}})");
  seed("safetensors", "twice", bytes_of({2}) + R"({"a":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]},"a":0})");
  seed("safetensors", "overflow",
       bytes_of({0}) + R"({"a":{"dtype":"F64","shape":[4294967296,4294967296],"data_offsets":[0,0]}})");

  const auto weights = [](int width, const char* kernel, bool bottleneck, int third) {
    nlohmann::json header;
    const auto add = [&](const std::string& name, std::vector<int> shape) {
      header[name] = {{"dtype", "F32"}, {"shape", shape}, {"data_offsets", {0, 0}}};
    };
    add("conv1.weight", {width, 3, std::atoi(kernel), 0});
    const int counts[] = {bottleneck ? 3 : 2, 2, third, 2};
    for (int layer = 1; layer <= 4; ++layer)
      for (int block = 0; block < counts[layer - 1]; ++block) {
        add(cat("layer{}.{}.conv1.weight", layer, block), {0});
        if (bottleneck) add(cat("layer{}.{}.conv3.weight", layer, block), {0});
      }
    add("fc.0.weight", {128, 0});
    add("fc.2.weight", {64, 0});
    return header.dump();
  };
  seed("weights", "resnet18", " " + weights(64, "7", false, 2));
  seed("weights", "resnet50", " " + weights(64, "3", true, 6));
  seed("weights", "wide", " " + weights(2000, "7", false, 2));
  seed("weights", "rank",
       std::string(" ") + R"({"conv1.weight":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},)"
                          R"("layer1.0.conv1.weight":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}})");
}

void put_manifests() {
  const fs::path run = fs::temp_directory_path() / cat("csml_corpus_{}", ::getpid());
  const std::vector<float> values{1, 2, 3};
  CheckpointContent content{.step = 7, .epoch = 1};
  content.model = content.state = {{"a", DType::f32, Shape{3}, values.data()}};
  content.user = {{"config", {{"train", {{"epochs", 3}}}}}, {"in_channels", 3}};
  const fs::path folder = CheckpointStore(run, {.keep_last = 1}).save(content);
  const std::string manifest = read_text_file(folder / "manifest.json", 1 << 20);
  fs::remove_all(run);
  seed("manifest", "good", manifest);
  seed("manifest", "compact", nlohmann::json::parse(manifest).dump());
  seed("manifest", "latest", "checkpoints/step_00000007\n");
  nlohmann::json other = nlohmann::json::parse(manifest);
  other["files"]["model.safetensors"]["bytes"] = -1;
  seed("manifest", "negative_size", other.dump());
  other.erase("files");
  seed("manifest", "no_files", other.dump());
  seed("manifest", "deep", std::string(200, '['));
}

void put_configurations() {
  seed("config", "lists",
       "[method]\nlevels = [\"res4\", \"res5\"]\nweights = [1, 0.5]\n[schedule]\nmilestones = [1, 2.5]\n"
       "[augment]\nmean = [0.5]\nchannels = 1\n[data]\ntrain = 'folder:a?split=train'\n");
  seed("config", "assignments",
       "train.seed=18446744073709551615\nmethod.terms=q,p\naugment.mean=0.5,0.4,0.3\nmethod.shuffle=off\n"
       "data.train=\"a\\tb\"\nschedule.lr=1e-3\n");
  seed("config", "unknown", "[trian]\nepochs = 3\n");
  seed("config", "dates", "[train]\nepochs = 1979-05-27T07:32:00Z\n");
  seed("config", "deep", "x = " + std::string(300, '['));
  seed("config", "texts",
       "[data]\ntrain = \"\"\"\na\\u00e9\\\n  b\"\"\"\ntest = 'x'\n[train]\nepochs = 0x10\nseed = 1_0\n");
}

void put_metrics() {
  seed("metrics", "run",
       R"({"kind":"eval","task":"knn","step":0,"epoch":0,"top1":20.5,"top5":60,"time":1.5})"
       "\n"
       R"({"kind":"step","step":10,"epoch":0,"loss":6.5,"loss_terms":{"q":6.5},"chance":8.3,"lr":0.03})"
       "\n"
       R"({"kind":"epoch","step":19,"epoch":0,"seconds":3.5,"purity":0.5})"
       "\n"
       R"({"kind":"step","step":20,"epoch":1,"loss":null,"feature_spread":0.9})"
       "\n"
       R"({"kind":"event","step":20,"event":"non_finite","text":"<b>"})"
       "\n{\"kind\":\"st");
  seed("metrics", "wrong_types",
       R"({"kind":"step","step":"ten","loss":"x","loss_terms":3})"
       "\n"
       R"({"kind":"epoch","step":5,"epoch":-1})"
       "\n[1]\n3\n");
  seed("metrics", "narrow",
       R"({"kind":"step","step":1,"loss":10000000000000000})"
       "\n"
       R"({"kind":"step","step":2,"loss":10000000000000002})"
       "\n");
  seed("metrics", "huge",
       R"({"kind":"step","step":1e300,"loss":-1.7e308})"
       "\n"
       R"({"kind":"step","step":2e300,"loss":1.7e308})"
       "\n");
  seed("metrics", "deep", R"({"kind":"event","text":)" + std::string(500, '[') + "\n");
}

}  // namespace
}  // namespace csml

int main(int count, char** arguments) {
  if (count != 2) {
    std::fputs("usage: fuzz_corpus FOLDER\n", stderr);
    return 2;
  }
  csml::root = arguments[1];
  csml::put_jpegs();
  csml::put_other_images();
  csml::put_coefficients();
  csml::put_data_sets();
  csml::put_packs();
  csml::put_tars();
  csml::put_safetensors();
  csml::put_manifests();
  csml::put_configurations();
  csml::put_metrics();
  return 0;
}
