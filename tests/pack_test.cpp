// Packs: what was packed comes back, byte for byte; damage is found and named.
#include "data/pack.h"

#include "engine/json.h"
#include "engine/safetensors.h"
#include "tests/files.h"

using namespace csml;
namespace fs = std::filesystem;

namespace {

std::vector<uint8_t> bytes_of(const std::string& text) { return {text.begin(), text.end()}; }

/// A pack of five files in shards of at most 100 bytes.
fs::path files_pack(const Folder& folder) {
  const fs::path out = folder.path / "files";
  PackWriter writer({.folder = out, .class_names = {"cat", "dog"}, .source = "test", .shard_bytes = 100});
  for (int i = 0; i < 5; ++i)
    writer.add(bytes_of(ppm(2 + i, 3, static_cast<uint8_t>(10 * i))), i % 2, cat("a/{}.ppm", i));
  writer.finish();
  CHECK(writer.images() == 5);
  CHECK(writer.shards() > 1);
  return out;
}

void flip(const fs::path& path, size_t at) {
  std::string bytes = slurp(path);
  bytes[at] = static_cast<char>(bytes[at] ^ 1);
  spill(path, bytes);
}

std::string open_error(const fs::path& folder) {
  return error_of([&] { open_dataset("pack:" + folder.string()); });
}

}  // namespace

TEST_CASE("files come back byte for byte, with labels and names") {
  const Folder folder;
  const fs::path out = files_pack(folder);
  const auto set = open_dataset(out.string());  // the kind is seen from the folder
  REQUIRE(set->size() == 5);
  CHECK(set->class_names() == std::vector<std::string>{"cat", "dog"});
  std::vector<uint8_t> bytes;
  for (int i = 0; i < 5; ++i) {
    CHECK(set->label(i) == i % 2);
    CHECK(set->name(i).ends_with(cat("/a/{}.ppm", i)));
    REQUIRE(set->encoded(i, bytes));
    CHECK(bytes == bytes_of(ppm(2 + i, 3, static_cast<uint8_t>(10 * i))));
    CHECK(set->load(i).height() == 2 + i);
  }
  set->verify();
  const auto some = open_dataset("pack:" + out.string() + "?limit=2&size=4&channels=1");
  CHECK(some->size() == 2);
  CHECK(some->load(1).width() == 4);
  CHECK(!some->encoded(0, bytes));
  CHECK(some->fingerprint() != set->fingerprint());
  CHECK(contains(error_of([&] { PackWriter({.folder = out}); }), "holds a pack already"));
  CHECK(contains(error_of([&] { open_dataset("pack:" + out.string() + "?split=test"); }), "split= does not apply"));
}

TEST_CASE("raw pixels come back, in one or three channels, and resized") {
  const Folder folder;
  const fs::path out = folder.path / "raw";
  PackWriter writer({.folder = out, .source = "test", .height = 2, .width = 3, .channels = 3, .shard_bytes = 40});
  for (int i = 0; i < 4; ++i) writer.add(std::vector<uint8_t>(18, static_cast<uint8_t>(50 + i)), -1, cat("{}", i));
  CHECK(contains(error_of([&] { writer.add(std::vector<uint8_t>(17), -1, "x"); }), "17 bytes of pixels, expected 18"));
  writer.finish();
  const auto set = open_dataset("pack:" + out.string());
  REQUIRE(set->size() == 4);
  CHECK(!set->has_labels());
  const Image image = set->load(3);
  CHECK(image.height() == 2);
  CHECK(image.width() == 3);
  CHECK(std::all_of(image.data(), image.data() + image.size(), [](uint8_t v) { return v == 53; }));
  CHECK(open_dataset("pack:" + out.string() + "?channels=1")->load(0).channels() == 1);
  CHECK(open_dataset("pack:" + out.string() + "?size=5")->load(0).width() == 5);
}

TEST_CASE("every changed byte of a shard is found") {
  const Folder folder;
  const fs::path out = files_pack(folder), shard = out / "shard-00000.safetensors";
  const std::string good = slurp(shard);
  for (size_t at = 0; at < good.size(); ++at) {
    flip(shard, at);
    const std::string error = error_of([&] { open_dataset("pack:" + out.string())->verify(); });
    CHECK_MESSAGE(!error.empty(), at);
    spill(shard, good);
  }
  // A changed image is that image's matter: the others are read.
  const SafetensorsFile file = SafetensorsFile::open(shard);
  flip(shard, file.position("images") + 13);
  const auto set = open_dataset("pack:" + out.string());
  CHECK(contains(error_of([&] { set->load(0); }), "a/0.ppm: does not match its checksum"));
  CHECK(set->load(4).height() == 6);
  spill(shard, good.substr(0, good.size() - 1));
  CHECK(contains(open_error(out), "the pack's index says"));
  fs::remove(shard);
  CHECK(contains(open_error(out), "No such file"));
}

TEST_CASE("an index that cannot be is refused with one line") {
  const Folder folder;
  const fs::path out = files_pack(folder), index = out / "pack.json";
  const nlohmann::json good = parse_json(slurp(index));
  const auto refused = [&](const std::function<void(nlohmann::json&)>& change) {
    nlohmann::json changed = good;
    change(changed);
    spill(index, changed.dump());
    return open_error(out);
  };
  CHECK(refused([](auto&) {}).empty());
  CHECK(contains(refused([](auto& p) { p["format"] = "x"; }), "not the index of a pack"));
  CHECK(contains(refused([](auto& p) { p["version"] = 2; }), "a version that this program does not read"));
  CHECK(contains(refused([](auto& p) { p["images"] = 6; }), "6 images, its shards hold 5"));
  CHECK(contains(refused([](auto& p) { p.erase("classes"); }), "missing or of the wrong type"));
  CHECK(contains(refused([](auto& p) { p["classes"] = {"cat"}; }), "label 1 of 1 classes"));
  CHECK(contains(refused([](auto& p) { p["shards"][0]["file"] = "../x"; }), "no file's name"));
  CHECK(contains(refused([](auto& p) { p["shards"] = nlohmann::json::array(); }), "names no shard"));
  CHECK(contains(refused([](auto& p) { p["pixels"] = {0, 1, 3}; }), "an extent of the pixels"));
  CHECK(contains(refused([](auto& p) { p["pixels"] = {2, 3, 3}; }), "pixels"));
  for (const nlohmann::json& value : {nlohmann::json(1e86), nlohmann::json(5.5), nlohmann::json(true)}) {
    CHECK(contains(refused([&](auto& p) { p["images"] = value; }), "missing or of the wrong type"));
    CHECK(contains(refused([&](auto& p) { p["pixels"] = {value, 3, 3}; }), "missing or of the wrong type"));
    CHECK(contains(refused([&](auto& p) { p["shards"][0]["bytes"] = value; }), "missing or of the wrong type"));
  }
  spill(index, "{");
  CHECK(contains(open_error(out), "not the index of a pack"));
}
