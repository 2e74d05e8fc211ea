// Any bytes as a JPEG, decoded by us and by libjpeg: where ours accepts, the pixels are equal.
#include "tests/fuzz/jpeg_reference.h"
#include "tests/fuzz/target.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  csml::fuzz::check_against_reference({data, bytes});
  return 0;
}
