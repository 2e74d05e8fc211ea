// Tar archives: what tar programs write is listed, what is damaged or unusual is refused by name; images in archives.
#include "data/tar.h"
#include "data/braces.h"
#include "data/dataset.h"

#include "tests/files.h"

#include <zlib.h>

#include <cstdlib>

using namespace csml;
namespace fs = std::filesystem;

namespace {

std::string octal(uint64_t value, int digits) { return cat("{:0{}o}", value, digits); }

/// One member: header with a right checksum, content padded to whole blocks.
std::string member(const std::string& name, const std::string& content, char type = '0', const std::string& size = "") {
  std::string header(512, '\0');
  header.replace(0, std::min<size_t>(name.size(), 100), name.substr(0, 100));
  const std::string stated = size.empty() ? octal(content.size(), 11) : size;
  header.replace(124, stated.size(), stated);
  header[156] = type;
  header.replace(257, 8, std::string("ustar\00000", 8));
  header.replace(148, 8, 8, ' ');
  unsigned sum = 0;
  for (char c : header) sum += static_cast<unsigned char>(c);
  header.replace(148, 7, octal(sum, 6) + '\0');
  return header + content + std::string((512 - content.size() % 512) % 512, '\0');
}

const std::string kEnd(1024, '\0');

std::string record(const std::string& key, const std::string& value) {
  const size_t body = key.size() + value.size() + 3;
  size_t length = body + 1;
  while (cat("{}", length).size() + body != length) ++length;
  return cat("{} {}={}\n", length, key, value);
}

struct Archive {
  std::string list_error(const std::string& bytes) {
    spill(path, bytes);
    return error_of([&] { list_tar(path); });
  }
  std::string open_error(const std::string& bytes) {
    spill(path, bytes);
    return error_of([&] { open_dataset("tar:" + path); });
  }
  Folder folder;
  std::string path = (folder.path / "a.tar").string();
};

}  // namespace

TEST_CASE("regular files are listed with their place; folders, links and devices are left out") {
  Archive a;
  const std::string bytes = member("d/", "", '5') + member("d/a.txt", "hello") + member("link", "", '2') +
                            member("hard", "", '1', "00000001000") + member("../b", std::string(600, 'x')) + kEnd;
  spill(a.path, bytes);
  const TarList list = list_tar(a.path);
  REQUIRE(list.files.size() == 2);
  CHECK(list.others == 3);
  CHECK(list.files[0].name == "d/a.txt");
  CHECK(bytes.substr(list.files[0].offset, list.files[0].bytes) == "hello");
  CHECK(list.files[1].name == "../b");
  CHECK(list.files[1].bytes == 600);
}

TEST_CASE("long names and sizes of PAX and GNU") {
  Archive a;
  const std::string name = std::string(150, 'n') + "/x.jpg";
  spill(a.path, member("x", record("path", name) + record("size", "3"), 'x') + member("short", "abc", '0', "0") +
                    member("y", name + '\0', 'L') + member("short", "abcd") +
                    member("b", "abc", '0', std::string("\x80\0\0\0\0\0\0\0\0\0\0\3", 12)) + kEnd);
  const TarList list = list_tar(a.path);
  REQUIRE(list.files.size() == 3);
  CHECK(list.files[0].name == name);
  CHECK(list.files[0].bytes == 3);
  CHECK(list.files[1].name == name);
  CHECK(list.files[2].bytes == 3);
}

TEST_CASE("damage is refused with its place") {
  Archive a;
  const std::string good = member("a", std::string(700, 'x')) + member("b", "y") + kEnd;
  CHECK(a.list_error(good).empty());
  CHECK(a.list_error(good.substr(0, good.size() - 1024)).empty());  // some writers leave the end out
  CHECK(contains(a.list_error(std::string(2000, 'z')), "at byte 0: not a tar archive"));
  CHECK(contains(a.list_error(good.substr(0, 900)), "at byte 0: a member of 700 bytes ends behind the end"));
  CHECK(contains(a.list_error(good.substr(0, 1600)), "at byte 1536: the file ends inside a header"));
  std::string damaged = good;
  damaged[1536 + 3] = 'c';
  CHECK(contains(a.list_error(damaged), "at byte 1536: a header with a wrong checksum"));
  CHECK(contains(a.list_error(member("a", "", '0', "12x")), "without a size"));
  CHECK(contains(a.list_error(member("a", "", '0', "77777777777")), "ends behind the end"));
  CHECK(contains(a.list_error(member("a", "", 'S')), "sparse"));
  CHECK(contains(a.list_error(member("a", record("GNU.sparse.major", "1"), 'x')), "sparse"));
  CHECK(contains(a.list_error(member("a", "99 path=x\n", 'x')), "extended header that is damaged"));
  CHECK(contains(a.list_error(member("a", record("size", "-1"), 'x')), "size is no number"));
  CHECK(contains(a.list_error(member("a", std::string(5000, 'n'), 'L')), "longer than 4096"));
}

TEST_CASE("what the tar program writes in each of its formats") {
  const Folder folder;
  fs::create_directories(folder.path / "in" / std::string(90, 'd'));
  const std::string deep = std::string(90, 'd') + "/" + std::string(60, 'f') + ".ppm";
  spill(folder.path / "in" / deep, "content");
  for (const char* format : {"v7", "ustar", "pax", "gnu"}) {
    const std::string out = (folder.path / (std::string(format) + ".tar")).string();
    const std::string names = std::string(format) == "v7" ? std::string(90, 'd') : deep;
    const std::string command =
        cat("tar --format={} -C '{}/in' -cf '{}' '{}' 2>/dev/null", format, folder.path.string(), out, deep);
    if (std::system(command.c_str()) != 0) continue;  // v7 cannot hold the name
    const TarList list = list_tar(out);
    REQUIRE(list.files.size() == 1);
    CHECK(list.files[0].name == deep);
    CHECK(slurp(out).substr(list.files[0].offset, list.files[0].bytes) == "content");
  }
}

TEST_CASE("images of several archives, their classes, and a subset of them") {
  const Folder folder;
  const std::string first = member("a/0.ppm", ppm(2, 3, 10)) + member("a/0.cls", "1\n") + member("a/0.json", "{}") +
                            member("a/1.cls", "0") + member("a/1.ppm", ppm(4, 4, 20)) + member("a/._1.ppm", "mac");
  spill(folder.path / "t-1.tar", member("2.ppm", ppm(5, 5, 30)) + member("2.cls", "2") + kEnd);
  spill(folder.path / "t-0.tar", first + kEnd);
  const std::string pattern = "tar:" + (folder.path / "t-*.tar").string();
  const auto set = open_dataset(pattern);
  REQUIRE(set->size() == 3);
  CHECK(set->class_count() == 3);
  CHECK(set->label(0) == 1);
  CHECK(set->label(1) == 0);
  CHECK(set->name(0) == (folder.path / "t-0.tar/a/0.ppm").string());
  CHECK(set->load(0).width() == 3);
  CHECK(set->load(2).data()[0] == 30);
  CHECK(!set->in_memory());
  const auto resized = open_dataset(pattern + "?size=8&channels=1&limit=2");
  CHECK(resized->size() == 2);
  CHECK(resized->load(1).height() == 8);
  CHECK(resized->load(1).channels() == 1);
  CHECK(open_dataset((folder.path / "t-0.tar").string())->size() == 2);  // the kind is seen from the name
  CHECK(set->fingerprint() == open_dataset(pattern)->fingerprint());
  CHECK(set->fingerprint() != resized->fingerprint());
}

TEST_CASE("archives that cannot be a data set are refused with one line") {
  Archive a;
  CHECK(contains(a.open_error(member("a.txt", "x") + kEnd), "no image in it"));
  CHECK(contains(a.open_error(member("a.ppm", "x") + member("a.png", "x")), "two images of the name a"));
  CHECK(contains(a.open_error(member("a.ppm", "x") + member("a.cls", "cat")), "a.cls: not the number of a class"));
  CHECK(contains(a.open_error(member("a.ppm", "x") + member("a.cls", std::string(40, '1'))), "not a class's number"));
  CHECK(
      contains(a.open_error(member("a.ppm", "x") + member("a.cls", "1") + member("b.ppm", "x")), "b.ppm has no class"));
  CHECK(contains(error_of([&] { open_dataset("tar:" + a.path + ".none*"); }), "no file of that name or pattern"));
  CHECK(contains(error_of([&] { open_dataset("tar:" + a.path + "?split=test"); }), "split= does not apply"));
  // One image that cannot be read is that image's matter.
  spill(a.path, member("a.ppm", "broken") + member("b.ppm", ppm(2, 2, 1)) + kEnd);
  const auto set = open_dataset("tar:" + a.path);
  CHECK(contains(error_of([&] { set->load(0); }), "a.tar/a.ppm: "));
  CHECK(set->load(1).width() == 2);
}

TEST_CASE("patterns with braces are lists and ranges of numbers, zeros kept") {
  using Names = std::vector<std::string>;
  CHECK(expand_braces("a.tar") == Names{"a.tar"});
  CHECK(expand_braces("x-{08..11}.tar") == Names{"x-08.tar", "x-09.tar", "x-10.tar", "x-11.tar"});
  CHECK(expand_braces("{a,b}{1..2}") == Names{"a1", "a2", "b1", "b2"});
  CHECK(expand_braces("{a}{") == Names{"{a}{"});
  CHECK(expand_braces("{3..1}") == Names{"{3..1}"});
  CHECK(contains(error_of([] { expand_braces("{0..9999}{0..9999}"); }), "more than 1000000 names"));
}

TEST_CASE("archives by a range; one that is missing is named") {
  Folder folder;
  for (const char* name : {"00", "01"})
    spill(folder.path / cat("s-{}.tar", name), member(cat("{}.ppm", name), "P6 1 1 255\nabc") + kEnd);
  const std::string pattern = cat("tar:{}/s-{{00..01}}.tar", folder.path.string());
  CHECK(open_dataset(pattern)->size() == 2);
  const std::string more = cat("tar:{}/s-{{00..02}}.tar", folder.path.string());
  CHECK(contains(error_of([&] { open_dataset(more); }), "s-02.tar is not there"));
}

TEST_CASE("a compressed archive is unpacked aside, and refused where it is cut") {
  Archive a;
  const std::string path = a.path + ".gz", tar = member("x.ppm", "P6 1 1 255\nabc") + member("x.cls", "3") + kEnd;
  gzFile file = gzopen(path.c_str(), "wb");
  REQUIRE(gzwrite(file, tar.data(), static_cast<unsigned>(tar.size())) == static_cast<int>(tar.size()));
  REQUIRE(gzclose(file) == Z_OK);
  const auto set = open_dataset(path);
  REQUIRE(set->size() == 1);
  CHECK(set->label(0) == 3);
  const Image image = set->load(0);
  CHECK(std::string(image.data(), image.data() + 3) == "abc");
  CHECK(contains(set->describe(), "1 of 1 archives unpacked into temporary files"));
  const std::string whole = slurp(path);
  spill(path, whole.substr(0, whole.size() - 9));
  CHECK(contains(error_of([&] { open_dataset(path); }), "truncated or damaged gzip file"));
}
