// Any text as the SPEC of a data set. Only synthetic ones are opened: others would read what happens to be there.
#include "data/kinds.h"
#include "tests/fuzz/dataset_checks.h"
#include "tests/fuzz/target.h"

using namespace csml;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  const std::string text(fuzz::text_of({data, bytes}));
  fuzz::error_of([&] {
    const DatasetSpec spec = parse_spec(text);
    fuzz::require(!spec.kind.empty() && !spec.path.empty(), "a SPEC has a kind and a path");
    fuzz::require(spec.limit >= 0 && spec.size >= 0 && spec.size <= 4096 && spec.holdout >= 0 && spec.holdout < 1 &&
                      (spec.channels == 1 || spec.channels == 3),
                  "options are in their ranges");
    // What asks for more than memory has is refused, too slow to try otherwise.
    const bool small = spec.limit >= 1 && spec.limit <= 200 && spec.size <= 32, huge = spec.limit > int64_t{1} << 34;
    if (spec.kind != "synthetic" || !(small || huge)) return;
    const auto set = open_dataset(text);
    fuzz::require(spec.limit == 0 || set->size() <= spec.limit, "there are at most limit=N images");
    fuzz::require(set->channels() == spec.channels && set->has_labels() == spec.labels, "options take effect");
    fuzz::check_dataset(*set);
  });
  return 0;
}
