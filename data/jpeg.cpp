// JPEG through libjpeg-turbo; whole baseline files through data/baseline_jpeg.h.
#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <optional>

#include <jpeglib.h>  // after <cstdio>: it uses FILE without including it
// clang-format off
#include <jerror.h>
// clang-format on

#include "data/baseline_jpeg.h"
#include "data/formats.h"
#include "kernels/check.h"

namespace csml {
namespace {

struct JpegErrors {
  jpeg_error_mgr base;  // first: libjpeg hands back a pointer to it
  jmp_buf jump;
  char message[JMSG_LENGTH_MAX];
  char first_warning[JMSG_LENGTH_MAX];
  int warnings;
  bool missing_data;  // the entropy decoder ran into a marker and made blocks up
};

struct JpegSource {
  jpeg_source_mgr base;
  bool ended;  // asked for bytes past the end
};

struct JpegProgress {
  jpeg_progress_mgr base;
  int max_scans;
};

[[noreturn]] void jpeg_fail(j_common_ptr info) {
  auto* errors = reinterpret_cast<JpegErrors*>(info->err);
  (*info->err->format_message)(info, errors->message);
  std::longjmp(errors->jump, 1);
}

[[noreturn]] void jpeg_fail(j_common_ptr info, const char* message) {
  auto* errors = reinterpret_cast<JpegErrors*>(info->err);
  std::snprintf(errors->message, sizeof errors->message, "%s", message);
  std::longjmp(errors->jump, 1);
}

void jpeg_message(j_common_ptr info, int level) {
  auto* errors = reinterpret_cast<JpegErrors*>(info->err);
  if (level >= 0) return;
  if (errors->base.msg_code == JWRN_HIT_MARKER) errors->missing_data = true;
  if (errors->warnings++ == 0) (*info->err->format_message)(info, errors->first_warning);
}

boolean jpeg_fill(j_decompress_ptr info) {
  static const JOCTET kEndOfImage[2] = {0xFF, JPEG_EOI};
  auto* source = reinterpret_cast<JpegSource*>(info->src);
  source->ended = true;
  source->base.next_input_byte = kEndOfImage;
  source->base.bytes_in_buffer = 2;
  return TRUE;
}

void jpeg_skip(j_decompress_ptr info, long count) {
  jpeg_source_mgr* source = info->src;
  if (count <= 0) return;
  if (static_cast<size_t>(count) > source->bytes_in_buffer) {
    jpeg_fill(info);
  } else {
    source->next_input_byte += count;
    source->bytes_in_buffer -= static_cast<size_t>(count);
  }
}

void jpeg_watch_scans(j_common_ptr info) {
  const int max_scans = reinterpret_cast<JpegProgress*>(info->progress)->max_scans;
  if (reinterpret_cast<j_decompress_ptr>(info)->input_scan_number > max_scans)
    jpeg_fail(info, "more scans in a JPEG than the limit");
}

/// What decode_jpeg needs from libjpeg: nothing in here has a destructor, so longjmp may leave at any point.
struct JpegJob {
  jpeg_decompress_struct info;
  JpegErrors errors;
  JpegSource source;
  JpegProgress progress;
};

/// Reads the header and chooses the output colours; false with errors.message on failure.
bool jpeg_open(JpegJob& job, const uint8_t* bytes, size_t size, const DecodeLimits& limits) {
  job.info.err = jpeg_std_error(&job.errors.base);
  job.errors.base.error_exit = [](j_common_ptr info) { jpeg_fail(info); };
  job.errors.base.emit_message = jpeg_message;
  if (setjmp(job.errors.jump)) return false;
  jpeg_create_decompress(&job.info);
  job.info.mem->max_memory_to_use = static_cast<long>(limits.memory);
  job.source.base.init_source = [](j_decompress_ptr) {};
  job.source.base.term_source = [](j_decompress_ptr) {};
  job.source.base.fill_input_buffer = jpeg_fill;
  job.source.base.skip_input_data = jpeg_skip;
  job.source.base.resync_to_restart = jpeg_resync_to_restart;
  job.source.base.next_input_byte = bytes;
  job.source.base.bytes_in_buffer = size;
  job.info.src = &job.source.base;
  job.progress.base.progress_monitor = jpeg_watch_scans;
  job.info.progress = &job.progress.base;
  jpeg_read_header(&job.info, TRUE);
  switch (job.info.jpeg_color_space) {
    case JCS_GRAYSCALE:
      job.info.out_color_space = JCS_GRAYSCALE;
      break;
    case JCS_CMYK:
    case JCS_YCCK:
      job.info.out_color_space = JCS_CMYK;
      break;
    default:
      job.info.out_color_space = JCS_RGB;
  }
  return true;
}

/// Decodes into rows of `stride` bytes; false with errors.message on failure.
bool jpeg_read(JpegJob& job, uint8_t* pixels, size_t stride) {
  if (setjmp(job.errors.jump)) return false;
  jpeg_start_decompress(&job.info);
  while (job.info.output_scanline < job.info.output_height) {
    JSAMPROW rows[8];
    const JDIMENSION count = std::min<JDIMENSION>(8, job.info.output_height - job.info.output_scanline);
    for (JDIMENSION i = 0; i < count; ++i) rows[i] = pixels + stride * (job.info.output_scanline + i);
    jpeg_read_scanlines(&job.info, rows, count);
  }
  jpeg_finish_decompress(&job.info);  // reads on to the end: a marker that cannot be there means damage before it
  return true;
}

struct JpegCloser {
  JpegJob& job;
  ~JpegCloser() { jpeg_destroy_decompress(&job.info); }
};

/// The opened file as the fast decoder takes it, or nothing where libjpeg has to do it.
std::optional<BaselineScan> baseline_scan(const JpegJob& job) {
  const jpeg_decompress_struct& info = job.info;
  const bool gray = info.num_components == 1 && info.jpeg_color_space == JCS_GRAYSCALE;
  const bool color = info.num_components == 3 && info.jpeg_color_space == JCS_YCbCr;
  if ((!gray && !color) || info.progressive_mode || info.arith_code || info.data_precision != 8 ||
      info.comps_in_scan != info.num_components || info.Ss != 0 || info.Se != 63 || info.Ah != 0 || info.Al != 0 ||
      job.errors.warnings != 0 || job.source.ended)
    return {};
  const auto huffman = [](const JHUFF_TBL* table) {
    return table ? BaselineScan::Huffman{table->bits, table->huffval} : BaselineScan::Huffman{};
  };
  BaselineScan scan;
  scan.height = static_cast<int>(info.image_height), scan.width = static_cast<int>(info.image_width);
  scan.components = info.num_components;
  scan.restart_interval = static_cast<int>(info.restart_interval);
  scan.data = {info.src->next_input_byte, info.src->bytes_in_buffer};
  int blocks = 0;
  for (int c = 0; c < info.num_components; ++c) {
    const jpeg_component_info& from = info.comp_info[c];
    if (info.cur_comp_info[c] != &from || from.quant_tbl_no < 0 || from.quant_tbl_no >= NUM_QUANT_TBLS ||
        from.dc_tbl_no < 0 || from.dc_tbl_no >= NUM_HUFF_TBLS || from.ac_tbl_no < 0 || from.ac_tbl_no >= NUM_HUFF_TBLS)
      return {};
    const JQUANT_TBL* quant = info.quant_tbl_ptrs[from.quant_tbl_no];
    scan.component[static_cast<size_t>(c)] = {from.h_samp_factor, from.v_samp_factor, quant ? quant->quantval : nullptr,
                                              huffman(info.dc_huff_tbl_ptrs[from.dc_tbl_no]),
                                              huffman(info.ac_huff_tbl_ptrs[from.ac_tbl_no])};
    blocks += from.h_samp_factor * from.v_samp_factor;
  }
  if (color && blocks > 10) return {};  // more than the standard allows
  return scan;
}

}  // namespace

DecodeInfo decode_jpeg(Bytes bytes, int channels, Image& out, const DecodeLimits& limits, const ChooseRegion& region) {
  JpegJob job{};
  job.progress.max_scans = limits.scans;
  const JpegCloser closer{job};
  const auto failure = [&job] {
    if (job.source.ended) return Error(cat("truncated or damaged JPEG: {}", job.errors.message));
    return Error(cat("damaged JPEG: {}", job.errors.message));
  };
  if (!jpeg_open(job, bytes.data(), bytes.size(), limits)) throw failure();
  DecodeInfo info{
      ImageFormat::jpeg, static_cast<int>(job.info.image_height), static_cast<int>(job.info.image_width), 0, {}};
  check_extent(job.info.image_height, job.info.image_width, limits);
  const int64_t pixels = int64_t{info.height} * info.width;
  if (jpeg_has_multiple_scans(&job.info))  // progressive, or one component after the other
    job.progress.max_scans = static_cast<int>(std::min<int64_t>(limits.scans, limits.scan_pixels / pixels));

  if (const auto scan = baseline_scan(job); scan && (channels == 3 || scan->components == 1)) {
    const Window window = region ? region(info.height, info.width) : Window{0, 0, info.height, info.width};
    out.reset(info.height, info.width, channels);
    if (decode_baseline(*scan, window, out)) return info;
  }
  const int from = job.info.out_color_space == JCS_GRAYSCALE ? 1 : job.info.out_color_space == JCS_CMYK ? 4 : 3;
  Image raw;
  if (from != channels) {
    raw.reset(info.height, info.width, from);
  } else {
    out.reset(info.height, info.width, channels);
  }
  Image& target = from != channels ? raw : out;
  if (!jpeg_read(job, target.data(), static_cast<size_t>(info.width) * from)) throw failure();

  // A baseline file that only lacks its last marker is whole; a progressive one may lack scans without a trace.
  if (job.source.ended && (job.errors.missing_data || job.info.progressive_mode) && !limits.accept_truncated)
    throw Error(cat("truncated JPEG: the image data end after {} bytes", bytes.size()));
  if (from != channels) {
    out.reset(info.height, info.width, channels);
    convert_pixels(raw.data(), from, out.data(), channels, static_cast<size_t>(pixels));
  }
  info.warnings = job.errors.warnings;
  if (info.warnings) info.first_warning = job.errors.first_warning;
  return info;
}

}  // namespace csml
