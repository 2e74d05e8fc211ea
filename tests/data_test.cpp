// Data sets of every kind, draws of the augmentation.
#include "data/augment.h"
#include "data/dataset.h"
#include "data/shifted.h"

#include "tests/files.h"

#include <sys/stat.h>
#include <zlib.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>
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
  // A gzip file ends with its checksum and its length: neither may be missing or wrong.
  const std::string whole = slurp(packed);
  for (size_t missing = 1; missing <= 8; ++missing) {
    spill(packed, whole.substr(0, whole.size() - missing));
    CHECK(contains(open_error(folder.path.string() + "?split=test"), "truncated or damaged IDX file"));
  }
  spill(packed, whole.substr(0, whole.size() - 5) + '\x7F' + whole.substr(whole.size() - 4));
  CHECK(contains(open_error(folder.path.string() + "?split=test"), "truncated or damaged IDX file"));
  spill(packed, whole);

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
  CHECK(contains(error_of([&] { open("b.ppm 1\n\t2\n"); }), "line 2 has a label but no path"));
  CHECK(contains(error_of([&] { open("\n"); }), "no image in it"));
}

TEST_CASE("list: CSV with and without a header, quotes, a byte-order mark") {
  const Folder folder;
  for (const char* name : {"a.ppm", "b, \"c\".ppm"}) spill(folder.path / name, "P6 1 1 255\nabc");
  const auto open_csv = [&](const std::string& text) {
    spill(folder.path / "l.csv", text);
    return open_dataset((folder.path / "l.csv").string());
  };
  const auto named = open_csv("\xEF\xBB\xBFid,Label,Path\r\n1,cat,a.ppm\r\n2,\"a dog\",\"b, \"\"c\"\".ppm\"\r\n");
  REQUIRE(named->size() == 2);
  CHECK(named->class_names() == std::vector<std::string>{"a dog", "cat"});
  CHECK(named->label(0) == 1);
  CHECK(named->load(1).size() == 3);
  CHECK(open_csv("a.ppm,3\n")->label(0) == 3);
  CHECK(!open_csv("filename\na.ppm\n")->has_labels());
  CHECK(contains(error_of([&] { open_csv("id,size\n1,2\n"); }), "no column called path"));
  CHECK(contains(error_of([&] { open_csv("path,label\na.ppm\n"); }), "line 2 has 1 fields, the first has 2"));
  CHECK(contains(error_of([&] { open_csv("path\n\"a.ppm\n"); }), "line 2: a quote does not end on its line"));
}

TEST_CASE("list: what is no list is called by its name") {
  const Folder folder;
  const auto refused = [&](const std::string& bytes) {
    spill(folder.path / "x.dat", bytes);
    return open_error((folder.path / "x.dat").string());
  };
  CHECK(contains(refused("PK\3\4...."), "not a list of images, but a ZIP archive (.zip, .npz)"));
  CHECK(contains(refused("PAR1...."), "a Parquet file"));
  CHECK(contains(refused("\x1F\x8B...."), "a gzip file"));
}

TEST_CASE("idx: a pipe in the place of a file is refused instead of waited for") {
  const Folder folder;
  REQUIRE(::mkfifo((folder.path / "train-images-idx3-ubyte").c_str(), 0600) == 0);
  CHECK(contains(open_error("idx:" + folder.path.string()), "not a regular file"));
}

TEST_CASE("stl10: planes are read column by column, labels count from 1, unlabeled is a split") {
  const Folder folder;
  constexpr size_t kPlane = 96 * 96;
  std::string image(3 * kPlane, '\0');
  image[5 * 96 + 2] = 10;        // red of row 2, column 5
  image[kPlane + 95 * 96] = 20;  // green of row 0, column 95
  image[2 * kPlane + 95] = 30;   // blue of row 95, column 0
  spill(folder.path / "train_X.bin", image + std::string(3 * kPlane, '\7'));
  spill(folder.path / "train_y.bin", "\x01\x0A");
  spill(folder.path / "unlabeled_X.bin", image);
  const auto d = open_dataset(folder.path.string());
  REQUIRE(d->size() == 2);
  CHECK(contains(d->describe(), "stl10:"));
  CHECK(d->label(0) == 0);
  CHECK(d->label(1) == 9);
  const Image first = d->load(0);
  CHECK(first.view().row(2)[3 * 5] == 10);
  CHECK(first.view().row(0)[3 * 95 + 1] == 20);
  CHECK(first.view().row(95)[2] == 30);
  CHECK(d->load(1).data()[100] == 7);
  const auto rest = open_dataset(folder.path.string() + "?split=unlabeled");
  CHECK(rest->size() == 1);
  CHECK(!rest->has_labels());
  CHECK(contains(open_error("stl10:" + folder.path.string() + "?split=test"), "test_X.bin is not there"));
  spill(folder.path / "train_y.bin", "\x01\x0B");
  CHECK(contains(open_error(folder.path.string()), "image 1 has label 11"));
  spill(folder.path / "train_X.bin", image.substr(1));
  CHECK(contains(open_error(folder.path.string()), "not a whole number of 27648-byte images"));
  CHECK(contains(open_error("synthetic:shapes?split=unlabeled"), "split=unlabeled is for stl10 alone"));
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
  CHECK(contains(open_error("synthetic:shapes?limt=3"), "did you mean limit?"));
  CHECK(contains(open_error("synthetic:shapes?limit=x"), "expected a whole number"));
  CHECK(contains(open_error("synthetic:shapes?limit=0"), "expected a whole number"));
  CHECK(contains(open_error("synthetic:shapes?limit"), "needs a value"));
  CHECK(contains(open_error("synthetic:shapes?channels=4"), "expected one of 1, 3"));
  CHECK(contains(open_error("synthetic:shapes?split=trian"), "expected one of train"));
  CHECK(contains(open_error("synthetic:shapes?part=holdout"), "holdout=10%"));
  CHECK(contains(open_error("synthetic:shapes?holdout=120%"), "expected a share"));
  CHECK(contains(open_error("cifar:/x"), "did you mean cifar10?"));
  CHECK(contains(open_error("folder:"), "has no path"));
  CHECK(contains(open_error("tar:/x/*.tar"), "no file of that name or pattern"));
  CHECK(contains(open_error("pack:/x"), "/x/pack.json"));
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

TEST_CASE(
    "limit of an opened data set: the images of limit= in its SPEC, the smaller of both, none that are held out") {
  const auto identities = [](const Dataset& d) {  // name() is "shapes#17"; labels ride along
    std::set<std::pair<std::string, int>> ids;
    for (int64_t i = 0; i < d.size(); ++i) ids.emplace(d.name(i), d.label(i));
    CHECK(static_cast<int64_t>(ids.size()) == d.size());
    return ids;
  };
  const Folder folder;
  std::string records;
  for (int i = 0; i < 60; ++i) records += cifar_record(std::string(1, static_cast<char>(i < 40 ? 0 : i % 4)), i, 0, 0);
  spill(folder.path / "data_batch_1.bin", records);
  const std::string spec = "cifar10:" + folder.path.string();
  const auto open_limited = [&](const std::string& options, int64_t count) {
    auto d = open_dataset(spec + options);
    d->limit(count);
    return d;
  };
  for (const int64_t count : {1, 7, 22, 59}) {
    const auto d = open_limited("", count), same = open_dataset(cat("{}?limit={}", spec, count));
    CHECK(d->size() == count);
    CHECK(identities(*d) == identities(*same));
    CHECK(d->fingerprint() == same->fingerprint());
  }
  const auto ten = identities(*open_dataset(spec + "?limit=10"));
  CHECK(identities(*open_limited("?limit=30", 10)) == ten);
  CHECK(identities(*open_limited("?limit=10", 30)) == ten);
  CHECK(open_limited("", 1000)->size() == 60);
  CHECK(open_limited("?labels=none", 5)->name(4).ends_with("#4"));  // nothing to balance: the first in file order

  const auto rest = identities(*open_dataset(spec + "?holdout=20%"));
  const auto part = identities(*open_limited("?holdout=20%", 20));
  CHECK(part.size() == 20);
  CHECK(std::includes(rest.begin(), rest.end(), part.begin(), part.end()));
  CHECK_THROWS_AS(open_limited("", 0), Error);
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

TEST_CASE("shifted: every image moved by so many pixels one of four ways, black behind it") {
  const auto base = open_dataset("synthetic:shapes?limit=40&size=12");
  const Shifted same(*base, 0), moved(*base, 5), gone(*base, 12);
  CHECK(moved.size() == 40);
  CHECK(moved.label(3) == base->label(3));
  CHECK(moved.fingerprint() != base->fingerprint());
  std::set<std::pair<int, int>> ways;
  LoadScratch scratch;
  for (int64_t i = 0; i < 40; ++i) {
    const Image image = base->load(i), unmoved = same.load(i), black = gone.load(i);
    CHECK(std::memcmp(image.data(), unmoved.data(), image.size()) == 0);
    CHECK(std::all_of(black.data(), black.data() + black.size(), [](uint8_t p) { return p == 0; }));
    const ImageView view = moved.view(i, scratch, {});
    int matches = 0;
    for (const auto& [dy, dx] : {std::pair{-5, 0}, {5, 0}, {0, -5}, {0, 5}}) {
      bool equal = true;
      for (int y = 0; y < 12 && equal; ++y)
        for (int x = 0; x < 12 * 3 && equal; ++x) {
          const int fy = y - dy, fx = x - dx * 3;
          const bool inside = fy >= 0 && fy < 12 && fx >= 0 && fx < 36;
          equal = view.row(y)[x] == (inside ? image.view().row(fy)[fx] : 0);
        }
      if (equal) ++matches, ways.insert({dy, dx});
    }
    CHECK(matches >= 1);
  }
  CHECK(ways.size() == 4);
}
