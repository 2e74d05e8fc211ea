// Any bytes as a list of image files, as text and as CSV.
#include "data/kinds.h"
#include "tests/fuzz/dataset_checks.h"
#include "tests/fuzz/target.h"

using namespace csml;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  static const fuzz::Scratch scratch;
  static const auto image = scratch.put("a.pgm", "P5 2 2 255\n1234");
  for (const char* name : {"list.txt", "list.csv"}) {
    const auto path = scratch.put(name, fuzz::text_of({data, bytes}));
    fuzz::error_of([&] {
      const auto set = open_list({.kind = "list", .path = path.string()}, {});
      fuzz::check_dataset(*set);
      for (int64_t i = 0; i < std::min<int64_t>(set->size(), 100); ++i)
        fuzz::require(set->name(i).size() > scratch.folder().string().size() + 1 || set->name(i).starts_with("/"),
                      "every image has a file's name");
    });
  }
  return 0;
}
