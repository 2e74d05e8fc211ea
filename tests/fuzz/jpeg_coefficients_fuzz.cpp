// Any coefficients, quantisation tables and samplings as a well-formed baseline JPEG, decoded by us and by libjpeg. Of
// changed bytes of a file hardly any are still whole; these all are.
#include <array>
#include <csetjmp>
#include <cstdio>
#include <vector>

#include <jpeglib.h>

#include "tests/fuzz/jpeg_reference.h"
#include "tests/fuzz/target.h"

using namespace csml;

namespace {

struct Errors {
  jpeg_error_mgr base;
  std::jmp_buf jump;
};

/// Reads the coefficients of one block: how many, then place and value of each.
void put_block(fuzz::Input& input, JBLOCKROW block) {
  for (int count = input.byte() % 8; count > 0; --count) {
    const int place = input.byte();
    int value = static_cast<int8_t>(input.byte());
    if (place & 0x80) value = (value * 256 + input.byte()) % 1024;  // what 10 bits and a sign hold
    (*block)[place & 63] = static_cast<JCOEF>(value);
  }
}

/// Compresses what the input describes into `memory`; false where libjpeg refuses it.
bool encode(fuzz::Input& input, jpeg_compress_struct& info, Errors& errors, unsigned char** memory,
            unsigned long* bytes) {
  if (setjmp(errors.jump)) return false;
  jpeg_create_compress(&info);
  jpeg_mem_dest(&info, memory, bytes);
  const uint8_t switches = input.byte();
  info.image_height = 1 + input.byte() % 70;
  info.image_width = 1 + input.byte() % 70;
  info.input_components = switches & 1 ? 1 : 3;
  info.in_color_space = switches & 1 ? JCS_GRAYSCALE : JCS_YCbCr;
  jpeg_set_defaults(&info);
  info.optimize_coding = switches & 2 ? TRUE : FALSE;
  info.restart_interval = switches & 4 ? 1 + input.byte() % 7 : 0;
  const uint8_t sampling = input.byte();
  for (int c = 0; c < info.num_components; ++c) {
    info.comp_info[c].h_samp_factor = 1 + (sampling >> (2 * c) & 1);
    info.comp_info[c].v_samp_factor = 1 + (sampling >> (2 * c + 1) & 1);
  }
  const uint8_t step = input.byte();
  for (int t = 0; t < 2; ++t) {
    std::array<unsigned, DCTSIZE2> table;
    for (unsigned i = 0; i < DCTSIZE2; ++i) table[i] = 1 + (step * (i + 1) * (switches & 8 ? 40u : 1u)) % 65535;
    jpeg_add_quant_table(&info, t, table.data(), 100, FALSE);
  }

  int h_max = 1, v_max = 1;
  for (int c = 0; c < info.num_components; ++c) {
    h_max = std::max(h_max, info.comp_info[c].h_samp_factor);
    v_max = std::max(v_max, info.comp_info[c].v_samp_factor);
  }
  const auto blocks = [](unsigned pixels, int factor, int most) {
    const unsigned f = static_cast<unsigned>(factor),
                   count = (pixels * f + 8 * static_cast<unsigned>(most) - 1) / (8 * static_cast<unsigned>(most));
    return (count + f - 1) / f * f;
  };
  std::array<jvirt_barray_ptr, 3> arrays{};
  for (size_t c = 0; c < static_cast<size_t>(info.num_components); ++c) {
    const jpeg_component_info& component = info.comp_info[c];
    arrays[c] = info.mem->request_virt_barray(reinterpret_cast<j_common_ptr>(&info), JPOOL_IMAGE, TRUE,
                                              blocks(info.image_width, component.h_samp_factor, h_max),
                                              blocks(info.image_height, component.v_samp_factor, v_max),
                                              static_cast<JDIMENSION>(component.v_samp_factor));
  }
  jpeg_write_coefficients(&info, arrays.data());
  for (size_t c = 0; c < static_cast<size_t>(info.num_components); ++c) {
    const jpeg_component_info& component = info.comp_info[c];
    const unsigned across = blocks(info.image_width, component.h_samp_factor, h_max);
    const unsigned down = blocks(info.image_height, component.v_samp_factor, v_max);
    for (unsigned y = 0; y < down; y += static_cast<unsigned>(component.v_samp_factor)) {
      const JBLOCKARRAY rows = info.mem->access_virt_barray(reinterpret_cast<j_common_ptr>(&info), arrays[c], y,
                                                            static_cast<JDIMENSION>(component.v_samp_factor), TRUE);
      for (int row = 0; row < component.v_samp_factor; ++row)
        for (unsigned x = 0; x < across && !input.empty(); ++x) put_block(input, &rows[row][x]);
    }
  }
  jpeg_finish_compress(&info);
  return true;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  fuzz::Input input(data, bytes);
  jpeg_compress_struct info{};
  Errors errors{};
  info.err = jpeg_std_error(&errors.base);
  errors.base.error_exit = [](j_common_ptr common) { std::longjmp(reinterpret_cast<Errors*>(common->err)->jump, 1); };
  errors.base.emit_message = [](j_common_ptr, int) {};
  // Larger than any of these files: the library then allocates none that an error would leave to nobody.
  static std::vector<unsigned char> buffer(size_t{1} << 19);
  unsigned char* memory = buffer.data();
  unsigned long size = buffer.size();
  const bool encoded = encode(input, info, errors, &memory, &size);
  jpeg_destroy_compress(&info);
  fuzz::require(memory == buffer.data(), "the buffer is large enough");
  if (encoded) fuzz::check_against_reference({memory, size});
  return 0;
}
