// Any bytes as the list of images that keep their labels.
#include "csml/evaluation/label_split.h"

#include <algorithm>

#include "data/kinds.h"
#include "tests/fuzz/target.h"

using namespace csml;

namespace {

/// Images whose names come once, in two folders, and as a number.
struct Images {
  Images() {
    std::filesystem::create_directory(scratch.folder() / "a");
    scratch.put("a/x.png", "");
    const auto list = scratch.put("list.txt", "a/x.png 0\nb/x.png 1\nb/y.png 1\nc/b/y.png 0\nz.png 2\n7 1\n");
    set = open_list({.kind = "list", .path = list.string()}, {});
  }
  fuzz::Scratch scratch;
  std::unique_ptr<Dataset> set;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  static const Images images;
  const auto path = images.scratch.put("labels.txt", fuzz::text_of({data, bytes}));
  fuzz::error_of([&] {
    int64_t unmatched = -1;
    const std::vector<int64_t> chosen = listed_labels(*images.set, path, &unmatched);
    fuzz::require(!chosen.empty() && unmatched >= 0, "an accepted list names an image");
    fuzz::require(std::adjacent_find(chosen.begin(), chosen.end(), std::greater_equal<>()) == chosen.end(),
                  "images come ascending, each once");
    fuzz::require(chosen.front() >= 0 && chosen.back() < images.set->size(), "images are of the data set");
  });
  return 0;
}
