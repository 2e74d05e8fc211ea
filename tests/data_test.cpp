// Data sets of every kind, draws of the augmentation, loaders: order, identity over workers, resume, unreadable images.
#include "data/augment.h"
#include "data/dataset.h"
#include "data/loader.h"

#include "tests/files.h"

#include <zlib.h>

#include <cmath>
#include <cstdlib>
#include <map>
#include <mutex>
#include <numeric>
#include <set>

using namespace csml;
namespace fs = std::filesystem;

namespace {

std::string big32(uint32_t v) {
  std::string s;
  for (int shift = 24; shift >= 0; shift -= 8) s += static_cast<char>(v >> shift);
  return s;
}

std::string ppm(int height, int width, uint8_t value) {
  return cat("P6\n{} {}\n255\n", width, height) +
         std::string(static_cast<size_t>(height) * width * 3, static_cast<char>(value));
}

/// A picture whose pixels differ from place to place.
std::string noise_ppm(int height, int width, uint32_t seed) {
  std::string s = cat("P6\n{} {}\n255\n", width, height);
  for (int i = 0; i < height * width * 3; ++i)
    s += static_cast<char>((static_cast<uint32_t>(i) + seed) * 2654435761u >> 24);
  return s;
}

/// One CIFAR record: red, green and blue planes hold r + p, g + p, b + p at pixel p (mod 256).
std::string cifar_record(const std::string& labels, int r, int g, int b) {
  std::string s = labels;
  for (int base : {r, g, b})
    for (int p = 0; p < 1024; ++p) s += static_cast<char>(base + p);
  return s;
}

std::string open_error(const std::string& spec) {
  return error_of([&] { open_dataset(spec); });
}

std::map<int, int> count_labels(const Dataset& d) {
  std::map<int, int> counts;
  for (int64_t i = 0; i < d.size(); ++i) ++counts[d.label(i)];
  return counts;
}

AugmentConfig small_augment(int size = 16) {
  AugmentConfig config;
  config.crop_size = size;
  return config;
}

std::vector<ViewSpec> five_views() {
  using Source = ViewSpec::Source;
  return {{Source::own, small_augment(), 0},
          {Source::own, small_augment(), 1},
          {Source::neighbor, small_augment(), 2},
          {Source::neighbor, small_augment(), 3},
          {Source::own, small_augment(12), 4}};
}

std::shared_ptr<NeighborTable> table_of(int64_t n, int k) {
  auto table = std::make_shared<NeighborTable>();
  table->k = k;
  for (int64_t i = 0; i < n; ++i)
    for (int j = 0; j < k; ++j) table->index.push_back(static_cast<int32_t>((i * 3 + j + 1) % n));
  return table;
}

bool same(const Batch& a, const Batch& b) {
  if (a.epoch != b.epoch || a.index != b.index || a.samples != b.samples || a.neighbors != b.neighbors ||
      a.labels != b.labels || a.views.size() != b.views.size())
    return false;
  for (size_t v = 0; v < a.views.size(); ++v)
    if (a.views[v].images != b.views[v].images || a.views[v].params != b.views[v].params) return false;
  return true;
}

std::vector<Batch> run_epochs(const Dataset& d, int workers, std::vector<int64_t> epochs, int64_t first = 0,
                              double max_bad_share = 0.5, int batch_size = 12) {
  LoaderOptions options;
  options.seed = 9;
  options.workers = workers;
  options.batch_size = batch_size;
  options.max_bad_share = max_bad_share;
  Loader loader(d, five_views(), options);
  std::vector<Batch> batches;
  for (int64_t epoch : epochs) {
    loader.start_epoch(epoch, first, table_of(d.size(), 3));
    for (Batch batch; loader.next(batch);) batches.push_back(batch);
  }
  return batches;
}

}  // namespace

// ---- data sets -----------------------------------------------------------------------------------------------------

TEST_CASE("cifar10: planes become interleaved pixels, batches are joined, sizes are checked") {
  const Folder folder;
  const std::string dir = folder.path.string();
  spill(folder.path / "data_batch_1.bin", cifar_record("\x03", 10, 20, 30) + cifar_record("\x09", 1, 2, 3));
  spill(folder.path / "data_batch_3.bin", cifar_record(std::string(1, '\0'), 100, 110, 120));
  spill(folder.path / "test_batch.bin", cifar_record("\x05", 0, 0, 0));
  spill(folder.path / "batches.meta.txt", "airplane\nautomobile\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n\n");
  const auto d = open_dataset("cifar10:" + dir);
  REQUIRE(d->size() == 3);
  CHECK(d->label(0) == 3);
  CHECK(d->label(1) == 9);
  CHECK(d->label(2) == 0);
  CHECK(d->class_names()[3] == "cat");
  const Image image = d->load(0);
  CHECK(image.view().row(0)[0] == 10);
  CHECK(image.view().row(0)[1] == 20);
  CHECK(image.view().row(0)[2] == 30);
  CHECK(image.view().row(1)[3 * 2] == 10 + 34);   // red at row 1, column 2
  CHECK(image.view().row(31)[3 * 31 + 2] == 29);  // blue of the last pixel: 30 + 1023 mod 256
  CHECK(d->load(2).view().row(0)[1] == 110);
  CHECK(open_dataset(dir + "?split=test")->label(0) == 5);  // recognised without KIND
  CHECK(contains(d->describe(), "3 images, 10 classes, 32 x 32 x 3 in memory"));
  const Image gray = open_dataset("cifar10:" + dir + "?channels=1")->load(0);
  CHECK(gray.channels() == 1);
  CHECK(gray.data()[0] == luma(10, 20, 30));
  CHECK(d->fingerprint() == open_dataset(dir)->fingerprint());
  CHECK(d->fingerprint() != open_dataset(dir + "?split=test")->fingerprint());

  spill(folder.path / "data_batch_1.bin", std::string(3072, 'x'));
  CHECK(contains(open_error("cifar10:" + dir), "3072 bytes is not a whole number of 3073-byte records"));
  spill(folder.path / "data_batch_1.bin", cifar_record("\x0A", 0, 0, 0));
  CHECK(contains(open_error("cifar10:" + dir), "label 10"));
}

TEST_CASE("cifar100: fine labels") {
  const Folder folder;
  fs::create_directory(folder.path / "cifar-100-binary");
  spill(folder.path / "cifar-100-binary/train.bin", cifar_record("\x07\x45", 1, 2, 3));
  const auto d = open_dataset(folder.path.string());
  CHECK(d->label(0) == 0x45);
  CHECK(d->class_count() == 100);
  CHECK(d->load(0).data()[2] == 3);
  CHECK(contains(open_error("cifar100:" + folder.path.string() + "?split=test"), "test.bin is not there"));
}

TEST_CASE("idx: plain and gzipped, both namings, gray repeated, size") {
  const Folder folder;
  std::string pixels(2 * 6, '\0');
  std::iota(pixels.begin(), pixels.end(), char{1});
  spill(folder.path / "train-images-idx3-ubyte", big32(0x0803) + big32(2) + big32(2) + big32(3) + pixels);
  spill(folder.path / "train-labels-idx1-ubyte", big32(0x0801) + big32(2) + std::string("\x01\x00", 2));
  const std::string packed = (folder.path / "t10k-images.idx3-ubyte.gz").string();
  const std::string plain = big32(0x0803) + big32(1) + big32(2) + big32(3) + pixels.substr(0, 6);
  const gzFile gz = gzopen(packed.c_str(), "wb");
  REQUIRE(gzwrite(gz, plain.data(), static_cast<unsigned>(plain.size())) == static_cast<int>(plain.size()));
  gzclose(gz);

  const auto d = open_dataset(folder.path.string());
  REQUIRE(d->size() == 2);
  CHECK(d->label(0) == 1);
  CHECK(d->class_count() == 2);
  const Image image = d->load(1);
  CHECK(image.width() == 3);
  CHECK(image.height() == 2);
  CHECK(image.view().row(1)[3] == 11);
  CHECK(image.view().row(1)[5] == 11);
  const auto test = open_dataset("idx:" + folder.path.string() + "?split=test&channels=1");
  CHECK(test->label(0) == -1);
  CHECK(test->load(0).size() == 6);
  CHECK(open_dataset(folder.path.string() + "?size=8")->load(0).view().height == 8);

  spill(folder.path / "train-images-idx3-ubyte", big32(0x0803) + big32(5) + big32(2) + big32(3) + pixels);
  CHECK(contains(open_error(folder.path.string()), "truncated or damaged IDX file"));
  spill(folder.path / "train-images-idx3-ubyte", big32(0x0803) + big32(1) + big32(2) + big32(3) + pixels);
  CHECK(contains(open_error(folder.path.string()), "longer than its header"));
  spill(folder.path / "train-images-idx3-ubyte", big32(0x0803) + big32(0xFFFFFFFF) + big32(0xFFFFFFFF) + big32(2));
  CHECK(contains(open_error(folder.path.string()), "larger than"));
  spill(folder.path / "train-images-idx3-ubyte", "hello world");
  CHECK(contains(open_error(folder.path.string()), "not an IDX file"));
  spill(folder.path / "train-images-idx3-ubyte", big32(0x0803) + big32(1) + big32(2) + big32(3) + pixels.substr(6));
  CHECK(contains(open_error(folder.path.string()), "2 labels for the 1 images"));
}

TEST_CASE("folder: classes, nesting, splits, hidden files, loops") {
  const Folder folder;
  const fs::path root = folder.path;
  for (const char* dir : {"train/b", "train/a/deep/er", "train/empty", "val/b", ".git"})
    fs::create_directories(root / dir);
  spill(root / "train/b/2.PPM", ppm(4, 5, 20));
  spill(root / "train/b/1.jpeg", ppm(3, 3, 10));  // the name says nothing about the format
  spill(root / "train/b/.hidden.png", "x");
  spill(root / "train/b/notes.txt", "x");
  spill(root / "train/a/deep/er/x.ppm", ppm(2, 2, 30));
  spill(root / "val/b/v.ppm", ppm(2, 2, 40));
  fs::create_directory_symlink(root / "train", root / "train/a/loop");
  const auto d = open_dataset(root.string());
  // Through the link train/a/loop the walk sees train again, where only a/ (an ancestor) is not entered a second time.
  std::set<std::string> names;
  for (int64_t i = 0; i < d->size(); ++i) names.insert(fs::relative(d->name(i), root / "train").string());
  CHECK(names.count("a/deep/er/x.ppm") == 1);
  CHECK(names.count("b/1.jpeg") == 1);
  CHECK(names.count("b/2.PPM") == 1);
  CHECK(names.count("b/.hidden.png") == 0);
  CHECK(d->size() < 10);
  CHECK(d->class_names() == std::vector<std::string>{"a", "b", "empty"});
  CHECK(d->label(0) == 0);
  CHECK(d->label(d->size() - 1) == 1);
  CHECK(d->load(d->size() - 1).data()[0] == 20);
  const auto val = open_dataset("folder:" + root.string() + "?split=test");
  CHECK(val->size() == 1);
  CHECK(val->label(0) == 1);  // the class list is that of train/
  fs::create_directory(root / "val/z");
  spill(root / "val/z/v.ppm", ppm(2, 2, 40));
  CHECK(contains(open_error("folder:" + root.string() + "?split=test"), "class z"));
}

TEST_CASE("folder: flat, size, missing, empty") {
  const Folder folder;
  spill(folder.path / "b.ppm", ppm(10, 20, 2));
  spill(folder.path / "a.ppm", ppm(10, 20, 1));
  const auto d = open_dataset("folder:" + folder.path.string());
  CHECK(d->size() == 2);
  CHECK(!d->has_labels());
  CHECK(d->label(0) == -1);
  CHECK(d->load(0).data()[0] == 1);
  CHECK(open_dataset("folder:" + folder.path.string() + "?size=6")->load(1).view().width == 6);
  CHECK(open_dataset("folder:" + folder.path.string() + "?channels=1")->load(1).channels() == 1);
  const uint64_t before = d->fingerprint();
  spill(folder.path / "b.ppm", ppm(10, 21, 2));
  CHECK(open_dataset("folder:" + folder.path.string())->fingerprint() != before);

  const Folder empty;
  CHECK(contains(open_error("folder:" + empty.path.string()), "no image in it"));
  CHECK(contains(open_error("folder:/does/not/exist"), "no such directory"));
  CHECK(contains(open_error("/does/not/exist"), "no such file or directory"));
  CHECK(contains(open_error("folder:" + empty.path.string() + "?split=test"), "split=test needs"));
  spill(empty.path / "text.jpg", "this is text");
  const auto bad = open_dataset(empty.path.string());
  CHECK(error_of([&] { bad->load(0); }) ==
        (empty.path / "text.jpg").string() + ": not an image: it begins with \"this is \"");
}

TEST_CASE("list: numbers, names, unlabelled, errors") {
  const Folder folder;
  spill(folder.path / "an image.ppm", ppm(2, 2, 7));
  spill(folder.path / "b.ppm", ppm(2, 2, 8));
  const auto open = [&](const std::string& content, const std::string& options = "") {
    spill(folder.path / "list.txt", content);
    return open_dataset("list:" + (folder.path / "list.txt").string() + options);
  };
  auto d = open("# comment\nan image.ppm 4\r\n\nb.ppm 0\n");
  CHECK(d->size() == 2);
  CHECK(d->label(0) == 4);
  CHECK(d->class_count() == 5);
  CHECK(d->load(0).data()[0] == 7);
  d = open("an image.ppm\tzebra\nb.ppm\tape\n");
  CHECK(d->label(0) == 1);
  CHECK(d->class_names() == std::vector<std::string>{"ape", "zebra"});
  d = open("b.ppm\nan image.ppm\n");
  CHECK(d->label(0) == -1);
  CHECK(d->load(1).data()[0] == 7);
  d = open((folder.path / "b.ppm").string() + " 1\n");
  CHECK(d->load(0).data()[0] == 8);
  CHECK(contains(error_of([&] { open("b.ppm 1\nan image.ppm\n"); }), "line 2 lacks a label"));
  CHECK(contains(error_of([&] { open("c.ppm 1\n"); }), "c.ppm (line 1) does not exist"));
  CHECK(contains(error_of([&] { open("b.ppm 99999999\n"); }), "not below"));
  CHECK(contains(error_of([&] { open("\n"); }), "no image in it"));
}

TEST_CASE("synthetic: labelled, balanced, reproducible, split apart") {
  const auto d = open_dataset("synthetic:shapes?limit=30&size=24");
  CHECK(d->size() == 30);
  CHECK(d->class_count() == 10);
  for (const auto& [label, count] : count_labels(*d)) CHECK(count == 3);
  CHECK(d->load(0).view().height == 24);
  CHECK(d->fingerprint() == open_dataset("synthetic:shapes?size=24?limit=30")->fingerprint());
  CHECK(d->fingerprint() != open_dataset("synthetic:shapes?size=24&limit=30&split=test")->fingerprint());
  CHECK(open_dataset("synthetic:shapes")->size() == 2000);
  CHECK(contains(open_error("synthetic:sheep"), "synthetic:shapes"));
}

TEST_CASE("spec: options, suggestions, kinds to come") {
  CHECK(contains(open_error("synthetic:shapes?limt=3"), "did you mean \"limit\""));
  CHECK(contains(open_error("synthetic:shapes?limit=x"), "expected a whole number"));
  CHECK(contains(open_error("synthetic:shapes?limit=0"), "expected a whole number"));
  CHECK(contains(open_error("synthetic:shapes?limit"), "needs a value"));
  CHECK(contains(open_error("synthetic:shapes?channels=4"), "expected one of 1, 3"));
  CHECK(contains(open_error("synthetic:shapes?split=trian"), "expected one of train"));
  CHECK(contains(open_error("synthetic:shapes?part=holdout"), "holdout=10%"));
  CHECK(contains(open_error("synthetic:shapes?holdout=120%"), "expected a share"));
  CHECK(contains(open_error("cifar:/x"), "did you mean \"cifar10\""));
  CHECK(contains(open_error("folder:"), "has no path"));
  CHECK(contains(open_error("tar:/x/*.tar"), "not in this release"));
  CHECK_THROWS_AS(open_dataset("pack:/x"), UsageError);
}

TEST_CASE("limit: class-balanced and nested; holdout: a partition; labels=none") {
  const Folder folder;
  std::string records;
  for (int i = 0; i < 60; ++i) records += cifar_record(std::string(1, static_cast<char>(i < 40 ? 0 : i % 4)), i, 0, 0);
  spill(folder.path / "data_batch_1.bin", records);
  const std::string spec = "cifar10:" + folder.path.string();
  const auto identities = [&](const std::string& options) {
    const auto d = open_dataset(spec + options);
    std::set<int> ids;
    for (int64_t i = 0; i < d->size(); ++i) ids.insert(d->load(i).data()[0]);
    CHECK(static_cast<int64_t>(ids.size()) == d->size());
    return ids;
  };
  const auto d = open_dataset(spec + "?limit=12");
  for (const auto& [label, count] : count_labels(*d)) CHECK(count == 3);
  CHECK(open_dataset(spec + "?limit=1000")->size() == 60);
  const auto eight = identities("?limit=8"), twenty = identities("?limit=20");
  CHECK(std::includes(twenty.begin(), twenty.end(), eight.begin(), eight.end()));
  CHECK(twenty.count(0) == 1);

  const auto rest = identities("?holdout=20%"), held = identities("?holdout=20%&part=holdout");
  CHECK(rest.size() == 48);
  CHECK(held.size() == 12);
  for (int id : held) CHECK(rest.count(id) == 0);
  for (const auto& [label, count] : count_labels(*open_dataset(spec + "?holdout=0.2&part=holdout")))
    CHECK(count == (label == 0 ? 9 : 1));
  const auto bare = open_dataset(spec + "?labels=none&limit=8");
  CHECK(bare->label(3) == -1);
  CHECK(bare->class_count() == 0);
  CHECK(bare->size() == 8);
}

TEST_CASE("real files: CIFAR-10 and Fashion-MNIST where present") {
  if (fs::exists("/usr/share/datasets/fashion-mnist")) {
    const auto train = open_dataset("idx:/usr/share/datasets/fashion-mnist");
    CHECK(train->size() == 60000);
    CHECK(count_labels(*train)[3] == 6000);
    CHECK(open_dataset("/usr/share/datasets/fashion-mnist?split=test")->size() == 10000);
  } else {
    MESSAGE("skipped: /usr/share/datasets/fashion-mnist not present (Debian package dataset-fashion-mnist)");
  }
  const char* given = std::getenv("CSML_DATA");
  const fs::path root = given ? fs::path(given) : fs::path("../shared/data");
  fs::path cifar;
  for (const char* candidate : {"cifar10-small", "cifar10/small", "cifar10", "cifar-10-batches-bin"})
    if (fs::exists(root / candidate / "data_batch_1.bin")) cifar = root / candidate;
  if (cifar.empty()) {
    MESSAGE("skipped: no data_batch_1.bin below CSML_DATA (the pack must be unpacked)");
    return;
  }
  const auto train = open_dataset("cifar10:" + cifar.string());
  CHECK(train->size() % 5000 == 0);
  CHECK(count_labels(*train).size() == 10);
}

// ---- draws ---------------------------------------------------------------------------------------------------------

TEST_CASE("crops: inside the image, area and ratio as asked, fallback") {
  const AugmentConfig config;
  double area = 0, log_ratio = 0, flips = 0, largest = 0, smallest = 1;
  constexpr int kDraws = 20000;
  for (uint64_t i = 0; i < kDraws; ++i) {
    const CropBox c = draw_crop(config, 1000, 1000, 1, 0, i, 0);
    REQUIRE((c.y >= 0 && c.x >= 0 && c.height > 0 && c.width > 0 && c.y + c.height <= 1000 && c.x + c.width <= 1000));
    const double share = c.height * c.width / 1e6;
    area += share / kDraws;
    largest = std::max(largest, share), smallest = std::min(smallest, share);
    log_ratio += std::log(static_cast<double>(c.width) / c.height) / kDraws;
    flips += c.flip / static_cast<double>(kDraws);
  }
  // Area is U(0.2, 1), of which attempts that do not fit are drawn again: below the mean 0.6 of the uniform law.
  CHECK(smallest < 0.203);
  CHECK(largest > 0.97);
  CHECK(std::abs(area - 0.538) < 0.004);  // torchvision's own mean over 20,000 draws: 0.5378
  CHECK(std::abs(log_ratio) < 0.01);
  CHECK(std::abs(flips - 0.5) < 0.015);

  // Small areas always fit: exactly uniform.
  AugmentConfig small = config;
  small.scale_min = 0.1f, small.scale_max = 0.5f;
  area = 0;
  for (uint64_t i = 0; i < kDraws; ++i) {
    const CropBox c = draw_crop(small, 1000, 1000, 1, 0, i, 0);
    area += c.height * c.width / 1e6 / kDraws;
  }
  CHECK(std::abs(area - 0.3) < 0.004);

  // 10 x 1000 pixels never hold such a crop (ratio at most 4/3, at least a fifth of the area).
  CropBox wide = draw_crop(config, 10, 1000, 1, 0, 0, 0);
  CHECK(wide.height == 10);
  CHECK(wide.width == 13);
  CHECK(wide.x == 493);
  const CropBox tall = draw_crop(config, 1000, 10, 1, 0, 0, 0);
  CHECK(tall.width == 10);
  CHECK(tall.height == 13);
  const CropBox dot = draw_crop(config, 1, 1, 1, 0, 0, 0);
  CHECK(dot.height * dot.width == 1);

  const CropBox again = draw_crop(config, 1000, 900, 5, 6, 7, 8), twin = draw_crop(config, 1000, 900, 5, 6, 7, 8);
  CHECK((again.y == twin.y && again.x == twin.x && again.height == twin.height && again.flip == twin.flip));
  std::set<int> different;
  for (uint32_t view = 0; view < 8; ++view) different.insert(draw_crop(config, 1000, 900, 5, 6, 7, view).y);
  CHECK(different.size() > 4);
}

TEST_CASE("colours: ranges, probabilities, uniform order") {
  const AugmentConfig config;
  std::map<int, int> orders;
  int jitter = 0, gray = 0, blur = 0;
  double hue = 0, brightness = 0;
  constexpr int kDraws = 24000;
  for (uint64_t i = 0; i < kDraws; ++i) {
    const ColorParams p = draw_color(config, 3, 1, i, 2);
    REQUIRE((p.brightness >= 0.6f && p.brightness <= 1.4f && p.contrast >= 0.6f && p.contrast <= 1.4f));
    REQUIRE((p.saturation >= 0.6f && p.saturation <= 1.4f && std::abs(p.hue) <= 0.1f));
    REQUIRE((p.blur_sigma == 0 || (p.blur_sigma >= 0.1f && p.blur_sigma <= 2)));
    REQUIRE((p.solarize == 0 && p.flip == 0));
    if (p.order >= 0) {
      ++jitter, ++orders[static_cast<int>(p.order)];
      brightness += p.brightness;
      hue += p.hue;
    } else {
      REQUIRE((p.brightness == 1 && p.contrast == 1 && p.saturation == 1 && p.hue == 0));
    }
    gray += p.gray == 1;
    blur += p.blur_sigma > 0;
  }
  CHECK(std::abs(jitter / double{kDraws} - 0.8) < 0.01);
  CHECK(std::abs(gray / double{kDraws} - 0.2) < 0.01);
  CHECK(std::abs(blur / double{kDraws} - 0.5) < 0.013);
  CHECK(std::abs(brightness / jitter - 1) < 0.008);
  CHECK(std::abs(hue / jitter) < 0.002);
  REQUIRE(orders.size() == 24);
  double chi2 = 0;
  for (const auto& [order, count] : orders) chi2 += std::pow(count - jitter / 24.0, 2) / (jitter / 24.0);
  CHECK(chi2 < 50);  // 23 degrees of freedom: one in a thousand
  AugmentConfig strong;
  strong.brightness = 3;
  for (uint64_t i = 0; i < 100; ++i) CHECK(draw_color(strong, 1, 1, i, 0).brightness >= 0);
}

TEST_CASE("augmentation: values that cannot be used are refused by name") {
  AugmentConfig config;
  check_augment(config);
  config.scale_min = 0;
  CHECK(contains(error_of([&] { check_augment(config); }), "augment.scale"));
  config = {};
  config.gray_p = 1.5f;
  CHECK(contains(error_of([&] { check_augment(config); }), "augment.gray_p"));
  config = {};
  config.hue = 0.7f;
  CHECK_THROWS_AS(check_augment(config), UsageError);
}

TEST_CASE("CutMix: box, area, mean of lambda; Beta by two routes") {
  double mean = 0;
  constexpr int kDraws = 40000;
  for (uint64_t step = 0; step < kDraws; ++step) {
    const CutMixDraw d = draw_cutmix(11, step, 224);
    const auto [y0, x0, y1, x1] = d.box;
    REQUIRE((y0 >= 0 && x0 >= 0 && y0 <= y1 && x0 <= x1 && y1 <= 224 && x1 <= 224));
    REQUIRE(std::abs(d.lambda - (1 - (y1 - y0) * (x1 - x0) / (224.0 * 224))) < 1e-6);
    mean += d.lambda / kDraws;
  }
  CHECK(std::abs(mean - 0.675) < 0.004);

  for (float alpha : {0.5f, 1.0f, 2.0f, 2.0001f, 5.0f}) {
    Random random(1, Purpose::test, 2, static_cast<uint64_t>(alpha * 10000));
    double sum = 0, square = 0;
    for (int i = 0; i < kDraws; ++i) {
      const double x = draw_beta(random, alpha);
      REQUIRE((x >= 0 && x <= 1));
      sum += x / kDraws, square += x * x / kDraws;
    }
    CHECK(std::abs(sum - 0.5) < 0.008);
    CHECK(std::abs((square - sum * sum) * 4 * (2 * alpha + 1) - 1) < 0.03);
  }
  CHECK_THROWS_AS(draw_cutmix(1, 1, 32, 0.0f), Error);
}

// ---- loaders -------------------------------------------------------------------------------------------------------

TEST_CASE("loader: the same batches for any number of workers") {
  const auto d = open_dataset("synthetic:shapes?limit=100");
  const auto want = run_epochs(*d, 0, {0, 1});
  REQUIRE(want.size() == 16);  // the last four images of an epoch are dropped
  for (int workers : {1, 2, 5}) {
    const auto got = run_epochs(*d, workers, {0, 1});
    REQUIRE(got.size() == want.size());
    for (size_t b = 0; b < want.size(); ++b) CHECK_MESSAGE(same(got[b], want[b]), workers, " workers, batch ", b);
  }
  CHECK(want[0].samples != want[8].samples);  // another order in another epoch
  CHECK(want[0].views[0].images != want[0].views[1].images);
}

TEST_CASE("loader: an epoch visits every image once, neighbours come from the table") {
  const auto d = open_dataset("synthetic:shapes?limit=96");
  const auto table = table_of(96, 3);
  std::set<int64_t> seen;
  std::map<int64_t, int> columns;
  for (const Batch& batch : run_epochs(*d, 2, {4}))
    for (size_t at = 0; at < batch.samples.size(); ++at) {
      const int64_t i = batch.samples[at];
      CHECK(seen.insert(i).second);
      CHECK(batch.labels[at] == d->label(i));
      const int32_t* row = &table->index[static_cast<size_t>(i) * 3];
      const auto* found = std::find(row, row + 3, batch.neighbors[at]);
      CHECK(found != row + 3);
      ++columns[found - row];
    }
  CHECK(seen.size() == 96);
  CHECK(columns.size() == 3);
}

TEST_CASE("loader: a view is what its draws say") {
  const auto d = open_dataset("synthetic:shapes?limit=24");
  const auto views = five_views();
  const auto table = table_of(24, 3);
  const Batch batch = run_epochs(*d, 2, {7})[1];
  ResizeScratch scratch;
  for (size_t v = 0; v < views.size(); ++v)
    for (size_t at = 0; at < batch.samples.size(); ++at) {
      const auto sample = static_cast<uint64_t>(batch.samples[at]);
      const int64_t from = views[v].source == ViewSpec::Source::own ? batch.samples[at] : batch.neighbors[at];
      const Image image = d->load(from);
      const CropBox crop = draw_crop(views[v].augment, 32, 32, 9, 7, sample, views[v].number);
      ColorParams color = draw_color(views[v].augment, 9, 7, sample, views[v].number);
      color.flip = crop.flip;
      const auto size = static_cast<size_t>(views[v].augment.crop_size);
      std::vector<uint8_t> want(size * size * 3);
      resize(image.view().crop(crop.y, crop.x, crop.height, crop.width), static_cast<int>(size), static_cast<int>(size),
             Filter::bilinear, want.data(), scratch);
      CHECK(std::memcmp(want.data(), &batch.views[v].images[at * want.size()], want.size()) == 0);
      CHECK(std::memcmp(&color, &batch.views[v].params[at * ColorParams::kColumns], sizeof color) == 0);
    }
}

TEST_CASE("loader: resume in the middle of an epoch, restart drops what is under way") {
  const auto d = open_dataset("synthetic:shapes?limit=100");
  const auto whole = run_epochs(*d, 0, {3});
  const auto tail = run_epochs(*d, 2, {3}, 5);
  REQUIRE(tail.size() == whole.size() - 5);
  for (size_t b = 0; b < tail.size(); ++b) CHECK(same(tail[b], whole[b + 5]));

  LoaderOptions options;
  options.seed = 9;
  options.batch_size = 12;
  Loader loader(*d, five_views(), options);
  Batch batch;
  CHECK(!loader.next(batch));  // nothing before an epoch is started
  for (int round = 0; round < 20; ++round) {
    loader.start_epoch(1 + round, 0, table_of(100, 3));
    REQUIRE(loader.next(batch));
  }
  loader.start_epoch(3, 0, table_of(100, 3));
  for (const Batch& want : whole) {
    REQUIRE(loader.next(batch));
    CHECK(same(batch, want));
    CHECK(batch.wait_seconds >= 0);
  }
  CHECK(!loader.next(batch));
  CHECK(!loader.next(batch));
}

TEST_CASE("loader: processes share a global batch") {
  const auto d = open_dataset("synthetic:shapes?limit=100");
  LoaderOptions one;
  one.batch_size = 24;
  Loader whole(*d, {{ViewSpec::Source::own, small_augment(), 0}}, one);
  whole.start_epoch(2);
  Batch want;
  REQUIRE(whole.next(want));
  REQUIRE(whole.next(want));
  std::vector<int64_t> samples;
  for (int rank = 0; rank < 2; ++rank) {
    LoaderOptions half = one;
    half.batch_size = 12;
    half.rank = rank;
    half.ranks = 2;
    Loader loader(*d, {{ViewSpec::Source::own, small_augment(), 0}}, half);
    CHECK(loader.batches_per_epoch() == whole.batches_per_epoch());
    loader.start_epoch(2, 1);
    Batch batch;
    REQUIRE(loader.next(batch));
    samples.insert(samples.end(), batch.samples.begin(), batch.samples.end());
  }
  CHECK(samples == want.samples);
}

TEST_CASE("loader: what cannot work is refused") {
  const auto d = open_dataset("synthetic:shapes?limit=20");
  LoaderOptions options;
  options.batch_size = 21;
  CHECK(contains(error_of([&] { Loader(*d, five_views(), options); }), "do not fill a batch"));
  options.batch_size = 4;
  Loader loader(*d, five_views(), options);
  CHECK(contains(error_of([&] { loader.start_epoch(0); }), "neighbour table"));
  auto table = table_of(20, 3);
  table->index[7] = 20;
  CHECK(contains(error_of([&] { loader.start_epoch(0, 0, table); }), "neighbour 20"));
  auto views = five_views();
  views[0].augment.channels = 1;
  CHECK(contains(error_of([&] { Loader(*d, views, options); }), "channels"));
}

TEST_CASE("loader: unreadable images are replaced alike for any number of workers, named once, and bounded") {
  const Folder folder;
  for (int i = 0; i < 40; ++i)
    spill(folder.path / cat("{:02}.ppm", i), i % 8 == 5 ? "broken" : noise_ppm(20 + i, 30, static_cast<uint32_t>(i)));
  fs::create_symlink(folder.path / "40.ppm", folder.path / "41.ppm");
  spill(folder.path / "40.ppm", noise_ppm(9, 9, 1));
  const auto d = open_dataset("folder:" + folder.path.string());
  REQUIRE(d->size() == 42);
  fs::remove(folder.path / "40.ppm");  // disappears after the listing, and 41.ppm with it
  const auto want = run_epochs(*d, 0, {0, 1});
  for (int workers : {1, 3}) {
    const auto got = run_epochs(*d, workers, {0, 1});
    REQUIRE(got.size() == want.size());
    for (size_t b = 0; b < want.size(); ++b) CHECK_MESSAGE(same(got[b], want[b]), workers, " workers, batch ", b);
  }
  const std::set<int64_t> bad = {5, 13, 21, 29, 37, 40, 41};
  for (const Batch& batch : want)
    for (size_t at = 0; at < batch.samples.size(); ++at) {
      CHECK(bad.count(batch.samples[at]) == 0);
      CHECK(bad.count(batch.neighbors[at]) == 0);
    }

  std::map<std::string, int> named;
  LoaderOptions options;
  options.batch_size = 10;
  options.max_bad_share = 0.2;
  options.on_bad_image = [&](const std::string& path, const std::string& reason) {
    ++named[fs::path(path).filename().string()];
    if (path.ends_with("05.ppm")) CHECK(reason == "not an image: it begins with \"broken\"");
    if (path.ends_with("40.ppm")) CHECK(contains(reason, "No such file"));
  };
  {
    Loader loader(*d, {{ViewSpec::Source::own, small_augment(), 0}}, options);
    Batch batch;
    for (int epoch = 0; epoch < 4; ++epoch) {
      loader.start_epoch(epoch);
      while (loader.next(batch)) {}
    }
    CHECK(loader.bad_images() == 7);
    CHECK(named.size() == 7);
    for (const auto& [name, count] : named) CHECK_MESSAGE(count == 1, name);
  }
  options.max_bad_share = 0.1;  // 4.2 images
  for (int workers : {0, 2}) {
    options.workers = workers;
    Loader loader(*d, {{ViewSpec::Source::own, small_augment(), 0}}, options);
    Batch batch;
    std::string stopped;
    for (int epoch = 0; epoch < 4 && stopped.empty(); ++epoch)
      stopped = error_of([&] {
        loader.start_epoch(epoch);
        while (loader.next(batch)) {}
      });
    CHECK(contains(stopped, "5 of 42 images cannot be read, more than data.max_bad_share = 0.1 allows"));
    CHECK(!error_of([&] { loader.next(batch); }).empty());
  }
}

TEST_CASE("loader: a callback's exception reaches the caller") {
  const Folder folder;
  for (int i = 0; i < 8; ++i) spill(folder.path / cat("{}.ppm", i), i == 3 ? "broken" : ppm(8, 8, 1));
  const auto d = open_dataset(folder.path.string());
  LoaderOptions options;
  options.batch_size = 8;
  options.max_bad_share = 1;
  options.on_bad_image = [](const std::string&, const std::string&) { throw Error("the disk is full"); };
  Loader loader(*d, {{ViewSpec::Source::own, small_augment(), 0}}, options);
  loader.start_epoch(0);
  Batch batch;
  CHECK(contains(error_of([&] { loader.next(batch); }), "the disk is full"));
}

TEST_CASE("evaluation: in order, whole, indices kept where an image is unreadable") {
  const Folder folder;
  for (int i = 0; i < 23; ++i)
    spill(folder.path / cat("{:02}.ppm", i), i == 11 ? "broken" : noise_ppm(30, 40 + i, static_cast<uint32_t>(i)));
  const auto d = open_dataset(folder.path.string());
  const EvalTransform transform{20, 16, Filter::bicubic};
  std::vector<uint8_t> first_run;
  for (int workers : {0, 3}) {
    LoaderOptions options;
    options.workers = workers;
    options.batch_size = 5;
    EvalLoader loader(*d, transform, options);
    for (int round = 0; round < 2; ++round) {
      std::vector<uint8_t> images;
      EvalBatch batch;
      int64_t at = 0;
      while (loader.next(batch)) {
        CHECK(batch.first == at);
        CHECK(batch.labels.size() == static_cast<size_t>(batch.count));
        CHECK(batch.images.size() == static_cast<size_t>(batch.count) * 16 * 16 * 3);
        for (int j = 0; j < batch.count; ++j) CHECK(batch.valid[static_cast<size_t>(j)] == (at + j != 11));
        at += batch.count;
        images.insert(images.end(), batch.images.begin(), batch.images.end());
      }
      CHECK(at == 23);
      CHECK(loader.bad_images() == 1);
      if (first_run.empty()) first_run = images;
      CHECK(images == first_run);
      loader.start();
    }
    loader.start(20);
    EvalBatch batch;
    REQUIRE(loader.next(batch));
    CHECK(batch.count == 3);
  }
  std::vector<uint8_t> want(16 * 16 * 3);
  ResizeScratch scratch;
  const Image image = d->load(2);
  eval_image(image.view(), transform, want.data(), scratch);
  CHECK(std::memcmp(want.data(), &first_run[2 * want.size()], want.size()) == 0);

  EvalLoader as_is(*d, {0, 16, Filter::bilinear}, {});
  EvalBatch batch;
  CHECK(contains(error_of([&] { as_is.next(batch); }), "00.ppm: the image has 40 x 30 pixels where 16 x 16"));
}
