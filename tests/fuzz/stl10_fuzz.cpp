// Any bytes as STL-10's files of images, labels and class names.
#include "data/kinds.h"
#include "tests/fuzz/dataset_checks.h"
#include "tests/fuzz/target.h"

using namespace csml;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  static const fuzz::Scratch scratch;
  fuzz::Input input(data, bytes);
  const uint8_t switches = input.byte();
  const bool padded = switches & 1, named = switches & 2;
  const size_t label_count = input.byte() % 8;
  const DatasetSpec spec{.kind = "stl10",
                         .path = scratch.folder().string(),
                         .test = true,
                         .size = switches & 4 ? 5 : 0,
                         .channels = switches & 8 ? 1 : 3};
  scratch.put("test_y.bin", fuzz::text_of(input.take(label_count)));
  scratch.remove("class_names.txt");
  if (named) scratch.put("class_names.txt", fuzz::text_of(input.take(64)));
  std::string images(fuzz::text_of(input.rest()));
  constexpr size_t kRecord = 3 * 96 * 96;  // few bytes are to make whole images
  if (padded) images.resize(std::max<size_t>(label_count, 1) * kRecord);
  scratch.put("test_X.bin", images);
  fuzz::error_of([&] {
    const auto set = open_stl10(spec, {});
    fuzz::require(static_cast<size_t>(set->size()) == images.size() / kRecord, "every record is an image");
    fuzz::require(set->class_count() == 10, "there are ten classes");
    fuzz::check_dataset(*set);
  });
  return 0;
}
