// Any bytes as a batch file of CIFAR-10 or CIFAR-100 and as its file of class names.
#include "data/kinds.h"
#include "tests/fuzz/dataset_checks.h"
#include "tests/fuzz/target.h"

using namespace csml;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  static const fuzz::Scratch scratch;
  fuzz::Input input(data, bytes);
  const uint8_t switches = input.byte();
  const bool hundred = switches & 1, named = switches & 2, padded = switches & 4;
  const DatasetSpec spec{.kind = hundred ? "cifar100" : "cifar10",
                         .path = scratch.folder().string(),
                         .test = true,
                         .size = switches & 8 ? 5 : 0,
                         .channels = switches & 16 ? 1 : 3};
  const std::string names = hundred ? "fine_label_names.txt" : "batches.meta.txt";
  scratch.remove(names);
  if (named) scratch.put(names, fuzz::text_of(input.take(64)));
  std::string records(fuzz::text_of(input.rest()));
  // Few bytes are to make a whole record, so that mutations go where they matter.
  const size_t record = hundred ? 3074 : 3073;
  if (padded) records.resize((records.size() / record + 1) * record);
  scratch.put(hundred ? "test.bin" : "test_batch.bin", records);
  scratch.remove(hundred ? "test_batch.bin" : "test.bin");

  fuzz::error_of([&] {
    const auto set = open_cifar(spec, {});
    fuzz::require(static_cast<size_t>(set->size()) == records.size() / record, "every record is an image");
    fuzz::require(set->class_count() == (hundred ? 100 : 10), "there is a name for every class");
    fuzz::check_dataset(*set);
  });
  return 0;
}
