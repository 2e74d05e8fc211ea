// Image folders and archives as they come: which folders are splits and classes, what is left out and said, and labels of
// two data sets compared by the names of their classes.
#include <sys/stat.h>

#include <map>

#include "data/class_names.h"
#include "data/dataset.h"
#include "data/decode.h"
#include "engine/text.h"

#include "tests/files.h"

#include <doctest/doctest.h>

using namespace csml;
namespace fs = std::filesystem;

namespace {

void put(const fs::path& path, const std::string& bytes = ppm(4, 4, 90)) {
  fs::create_directories(path.parent_path());
  spill(path, bytes);
}

std::unique_ptr<Dataset> open(const Folder& folder, const std::string& options = "") {
  return open_dataset(cat("folder:{}{}", folder.path.string(), options));
}

/// One member of a tar archive.
std::string member(const std::string& name, const std::string& bytes) {
  std::string header(512, '\0');
  header.replace(0, name.size(), name);
  header.replace(100, 8, std::string("0000644\0", 8));
  header.replace(124, 12, fmt::format("{:011o}", bytes.size()) + std::string(1, '\0'));
  header[156] = '0';
  header.replace(257, 8, std::string("ustar\00000", 8));
  header.replace(148, 8, 8, ' ');
  unsigned sum = 0;
  for (const char c : header) sum += static_cast<unsigned char>(c);
  header.replace(148, 8, fmt::format("{:06o}", sum) + std::string("\0 ", 2));
  return header + bytes + std::string((512 - bytes.size() % 512) % 512, '\0');
}

}  // namespace

TEST_CASE(
    "train/ beside val/ or test/ are splits whatever else lies there: validation images never join the training") {
  for (const char* beside : {"", "__MACOSX", "unlabeled", "notes"}) {
    const Folder folder;
    for (const char* split : {"train", "val", "test"})
      for (const char* name : {"cat", "dog"}) put(folder.path / split / name / cat("{}.ppm", split));
    if (*beside) put(folder.path / beside / "x.ppm");
    const auto train = open(folder), test = open(folder, "?split=test");
    CHECK(train->size() == 2);
    CHECK(train->class_names() == std::vector<std::string>{"cat", "dog"});
    CHECK(test->size() == 2);
    CHECK(contains(test->name(0), "val.ppm"));
    const std::string text = train->describe();
    if (*beside && std::string(beside) != "__MACOSX") CHECK(contains(text, cat("folder {} beside train/", beside)));
  }
}

TEST_CASE("a class called train is a class where no split lies beside it") {
  const Folder folder;
  for (const char* name : {"train", "plane", "ship"}) put(folder.path / name / "a.ppm");
  CHECK(open(folder)->class_names() == std::vector<std::string>{"plane", "ship", "train"});
}

TEST_CASE("junk folders of archivers are no classes, and are named") {
  const Folder folder;
  for (const char* name : {"cat", "dog", "__MACOSX", "@eaDir"}) put(folder.path / name / "a.ppm");
  put(folder.path / "cat" / "@eaDir" / "thumb.ppm");
  const auto data = open(folder);
  CHECK(data->size() == 2);
  CHECK(data->class_names() == std::vector<std::string>{"cat", "dog"});
  CHECK(data->left_out() == std::map<std::string, int64_t>{{"@eaDir/", 2}, {"__MACOSX/", 1}});
}

TEST_CASE("files that are no images are counted by reason and said") {
  const Folder folder;
  put(folder.path / "cat" / "a.ppm");
  put(folder.path / "dog" / "b.ppm");
  for (const char* name :
       {"cat/a.heic", "cat/b.HEIC", "dog/c.avif", "dog/README", ".DS_Store", "cat/.hidden.ppm", "list.csv"})
    put(folder.path / name);
  REQUIRE(::mkfifo((folder.path / "dog" / "pipe.ppm").c_str(), 0600) == 0);
  const auto data = open(folder);
  CHECK(data->size() == 2);
  CHECK(data->left_out() == std::map<std::string, int64_t>{{".avif", 1},
                                                           {".csv", 1},
                                                           {".heic", 2},
                                                           {"hidden", 2},
                                                           {"neither file nor folder", 1},
                                                           {"without suffix", 1}});
  CHECK(contains(data->describe(), "; left out: 1 .avif, 1 .csv, 2 .heic, 2 hidden"));
  const Folder only;
  put(only.path / "cat" / "a.heic");
  CHECK(contains(error_of([&] { open(only); }), cat("no image in it ({}); left out: 1 .heic", image_suffixes())));
}

TEST_CASE("links that multiply are refused, a few are followed") {
  const Folder folder;
  fs::path level = folder.path / "cat";
  put(level / "a.ppm");
  put(folder.path / "dog" / "b.ppm");
  for (int i = 0; i < 12; ++i) {  // 2^12 ways to the last folder
    const fs::path next = folder.path / cat("deep{}", i);
    fs::create_directories(next);
    for (const char* name : {"one", "two"}) fs::create_directory_symlink(next, level / name);
    level = next;
  }
  put(level / "c.ppm");
  CHECK(contains(error_of([&] { open(folder); }), "symbolic links lead to this folder in more than 1000 ways"));
}

TEST_CASE("members of archives that are left out are counted by reason and said") {
  const Folder folder;
  const fs::path path = folder.path / "a.tar";
  spill(path, member("7.ppm", ppm(4, 4, 1)) + member("7.cls", "3") + member("8.json", "{}") + member("9.cls", "1") +
                  member("22.05.ppm", ppm(4, 4, 1)) + member(".x", "") + std::string(1024, '\0'));
  const auto data = open_dataset(cat("tar:{}", path.string()));
  CHECK(data->size() == 1);
  CHECK(data->left_out() ==
        std::map<std::string, int64_t>{
            {".json", 1},
            {"classes without an image", 1},
            {"hidden", 1},
            {"images with a second dot in their name (webdataset reads the name up to the first)", 1}});
}

TEST_CASE("labels are compared by the names of their classes") {
  const Folder train, test, more;
  for (const char* name : {"ant", "bee", "cow"}) put(train.path / name / "a.ppm");
  for (const char* name : {"bee", "cow"}) put(test.path / name / "a.ppm");
  const auto bank = open(train), queries = open(test);
  CHECK(queries->label(0) == 0);
  queries->use_classes_of(*bank);
  CHECK(queries->label(0) == 1);  // bee
  CHECK(queries->label(1) == 2);
  CHECK(queries->class_names() == bank->class_names());
  for (const char* name : {"ant", "dog"}) put(more.path / name / "a.ppm");
  const std::string error = error_of([&] { open(more)->use_classes_of(*bank); });
  CHECK(contains(error, "has 1 images of class 'dog', which folder:"));
  CHECK(contains(error, "its classes are ant, bee, cow"));
  const std::vector<std::string> three{"0", "1", "2"}, two{"0", "1"};
  const std::string a = "a", b = "b";
  CHECK(labels_by_name({1, 0, -1}, {two, a}, {three, b}) == std::vector{1, 0, -1});
  CHECK(labels_by_name({1, 0}, {three, a}, {two, b}) == std::vector{1, 0});  // the absent class has no image
}

TEST_CASE("text from outside is made printable, and cut between characters") {
  CHECK(printable("plain é.jpg") == "plain é.jpg");
  CHECK(printable("a\x1B[2Jb\n\x7F") == "a\\x1B[2Jb\\n\\x7F");
  CHECK(printable("\xC2\x9B"
                  "31m") == "\\xC2\\x9B31m");                      // a control sequence's introducer of one character
  CHECK(printable("\xFF\xE2\x80\xAE") == "\\xFF\\xE2\\x80\\xAE");  // no UTF-8; turns the direction of writing
  CHECK(printable("a\nb", 200, true) == "a\nb");
  std::string longer(199, 'x');
  longer += "éé";
  CHECK(printable(longer, 200) == std::string(199, 'x') + "…");
  CHECK(printable(std::string(5000, 'y'), 200) == std::string(200, 'y') + "…");
  CHECK(quote("it") == "'it'");
}
