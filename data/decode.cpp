#include "data/decode.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <optional>

#include <jpeglib.h>  // after <cstdio>: it uses FILE without including it
// clang-format off
#include <jerror.h>
// clang-format on

#include "data/baseline_jpeg.h"
#include "data/png_bmp.h"
#include "kernels/check.h"

namespace csml {
namespace {

// ---- memory for stb_image ------------------------------------------------------------------------------------------

// stb_image inflates before it looks at the image's size; this budget keeps a decompression bomb from growing.
thread_local size_t stb_largest_block = 0;

void* stb_allocate(size_t bytes) { return bytes > stb_largest_block ? nullptr : std::malloc(bytes); }
void* stb_reallocate(void* block, size_t bytes) {
  return bytes > stb_largest_block ? nullptr : std::realloc(block, bytes);
}

}  // namespace
}  // namespace csml

#define STBI_MALLOC(bytes) csml::stb_allocate(bytes)
#define STBI_REALLOC(block, bytes) csml::stb_reallocate(block, bytes)
#define STBI_FREE(block) std::free(block)
#define STBI_ONLY_PNG
#define STBI_ONLY_BMP
#define STBI_NO_STDIO
#define STBI_MAX_DIMENSIONS (1 << 24)
#define STB_IMAGE_STATIC
#define STB_IMAGE_IMPLEMENTATION
#include <stb/stb_image.h>

namespace csml {
namespace {

using Bytes = std::span<const uint8_t>;

bool starts_with(Bytes bytes, std::initializer_list<int> magic) {
  if (bytes.size() < magic.size()) return false;
  return std::equal(magic.begin(), magic.end(), bytes.begin(), [](int m, uint8_t b) { return m == b; });
}

void check_extent(int64_t height, int64_t width, const DecodeLimits& limits) {
  if (height < 1 || width < 1) throw Error(cat("the header gives an empty image ({} x {})", width, height));
  if (height > limits.side || width > limits.side)
    throw Error(cat("{} x {} pixels: a side is longer than the limit of {}", width, height, limits.side));
  if (height * width > limits.pixels)
    throw Error(cat("{} x {} pixels: more than the limit of {}", width, height, limits.pixels));
}

// ---- JPEG ----------------------------------------------------------------------------------------------------------

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
    jpeg_fail(info, "more scans in a progressive JPEG than the limit");
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

/// a * b / 255, rounded as Pillow rounds.
inline int scaled(int a, int b) {
  const int t = a * b + 128;
  return ((t >> 8) + t) >> 8;
}

/// n pixels with `from` channels (1, 3, or 4 = inverted CMYK) -> `to` channels (1 or 3). Reads and writes forward;
/// in == out is allowed only for to <= from.
void convert_pixels(const uint8_t* in, int from, uint8_t* out, int to, size_t n) {
  if (from == to) {
    if (in != out) std::memcpy(out, in, n * static_cast<size_t>(to));
    return;
  }
  if (from == 1) {
    for (size_t i = 0; i < n; ++i) out[3 * i] = out[3 * i + 1] = out[3 * i + 2] = in[i];
    return;
  }
  for (size_t i = 0; i < n; ++i) {
    int r, g, b;
    if (from == 4) {
      const int ink = in[4 * i + 3];
      r = ink - scaled(255 - in[4 * i], ink);
      g = ink - scaled(255 - in[4 * i + 1], ink);
      b = ink - scaled(255 - in[4 * i + 2], ink);
    } else {
      r = in[3 * i], g = in[3 * i + 1], b = in[3 * i + 2];
    }
    if (to == 1) {
      out[i] = luma(r, g, b);
    } else {
      out[3 * i] = static_cast<uint8_t>(r), out[3 * i + 1] = static_cast<uint8_t>(g),
              out[3 * i + 2] = static_cast<uint8_t>(b);
    }
  }
}

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
  if (job.info.progressive_mode)
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

// ---- PNG, BMP, PNM -------------------------------------------------------------------------------------------------

/// Binary PGM and PPM. Not through stb_image: its 2022 snapshot reads past a 16-bit PNM when it changes the channels.
DecodeInfo decode_pnm(Bytes bytes, int channels, Image& out, const DecodeLimits& limits) {
  size_t at = 2;
  const auto number = [&](const char* what) {
    const auto next = [&]() -> int { return at < bytes.size() ? bytes[at] : -1; };
    while (next() == '#' || (next() > 0 && std::strchr(" \t\r\n\v\f", next()))) {
      if (next() == '#') {
        while (next() >= 0 && next() != '\n') ++at;
      } else {
        ++at;
      }
    }
    int64_t value = -1;
    for (; next() >= '0' && next() <= '9' && value < 1'000'000'000; ++at)
      value = (value < 0 ? 0 : 10 * value) + next() - '0';
    if (value < 0) throw Error(cat("damaged PNM: its header lacks the {}", what));
    return value;
  };
  const int from = bytes[1] == '6' ? 3 : 1;
  const int64_t width = number("width"), height = number("height"), largest = number("largest value");
  ++at;  // one white space ends the header
  if (largest < 1 || largest > 65535) throw Error(cat("damaged PNM: largest value {}", largest));
  check_extent(height, width, limits);
  const size_t samples = static_cast<size_t>(height * width) * from, step = largest > 255 ? 2 : 1;
  if (bytes.size() < at || bytes.size() - at < samples * step)
    throw Error(cat("truncated PNM: {} bytes where {} are needed", bytes.size(), at + samples * step));
  const uint8_t* in = &bytes[at];
  std::vector<uint8_t> scaled_samples;
  if (largest != 255) {
    scaled_samples.resize(samples);
    for (size_t i = 0; i < samples; ++i) {
      const int64_t v = step == 2 ? in[2 * i] << 8 | in[2 * i + 1] : in[i];
      scaled_samples[i] = static_cast<uint8_t>((std::min(v, largest) * 255 + largest / 2) / largest);
    }
    in = scaled_samples.data();
  }
  out.reset(static_cast<int>(height), static_cast<int>(width), channels);
  convert_pixels(in, from, out.data(), channels, static_cast<size_t>(height * width));
  return {ImageFormat::pnm, out.height(), out.width(), 0, {}};
}

DecodeInfo decode_stb(Bytes bytes, ImageFormat format, int channels, Image& out, const DecodeLimits& limits) {
  const char* name = format == ImageFormat::png ? "PNG" : "BMP";
  std::vector<uint8_t> completed;
  if (format == ImageFormat::png) {
    completed = checked_png(bytes);
    const PngExtent extent = png_extent(bytes);
    check_extent(extent.height, extent.width, limits);
  }
  stb_largest_block = 1 << 16;
  int width = 0, height = 0, parts = 0;
  if (!stbi_info_from_memory(bytes.data(), static_cast<int>(bytes.size()), &width, &height, &parts))
    throw Error(cat("damaged {}: {}", name, stbi_failure_reason()));
  if (format == ImageFormat::bmp && height < 0 && height != std::numeric_limits<int>::min()) height = -height;
  check_extent(height, width, limits);  // a BMP's height is negative where its rows go downwards
  if (format == ImageFormat::bmp) completed = checked_bmp(bytes, height, width);
  if (!completed.empty()) bytes = completed;
  // Twice the widest raw image (4 channels of 16 bits): stb_image grows its inflate buffer by doubling.
  stb_largest_block = std::min<size_t>(limits.memory, (size_t{1} << 16) + size_t{16} * width * height + 16 * height);
  int w = 0, h = 0;
  // Gray comes from RGB by our own formula, so that both channel counts agree with Pillow.
  const std::unique_ptr<stbi_uc, void (*)(void*)> pixels(
      stbi_load_from_memory(bytes.data(), static_cast<int>(bytes.size()), &w, &h, &parts, 3), std::free);
  if (!pixels) throw Error(cat("damaged {}: {}", name, stbi_failure_reason()));
  CHECK(w == width && h == height, "{} decoded to {} x {} where its header says {} x {}", name, w, h, width, height);
  out.reset(h, w, channels);
  convert_pixels(pixels.get(), 3, out.data(), channels, static_cast<size_t>(w) * h);
  return {format, h, w, 0, {}};
}

std::string first_bytes(Bytes bytes) {
  std::string text;
  for (size_t i = 0; i < std::min<size_t>(bytes.size(), 8); ++i)
    text += bytes[i] >= 32 && bytes[i] < 127 ? std::string(1, static_cast<char>(bytes[i])) : cat("\\x{:02x}", bytes[i]);
  return text;
}

[[noreturn]] void refuse_format(Bytes bytes) {
  struct Known {
    std::initializer_list<int> magic;
    const char* name;
  };
  static const Known kKnown[] = {{{'G', 'I', 'F', '8'}, "GIF"},
                                 {{'R', 'I', 'F', 'F'}, "WebP"},
                                 {{'I', 'I', 42, 0}, "TIFF"},
                                 {{'M', 'M', 0, 42}, "TIFF"},
                                 {{0, 0, 1, 0}, "ICO"},
                                 {{'P', '1'}, "plain PBM"},
                                 {{'P', '2'}, "plain PGM"},
                                 {{'P', '3'}, "plain PPM"},
                                 {{'P', '4'}, "PBM"},
                                 {{'P', 'F'}, "PFM"},
                                 {{0, 0, 0, 12, 'j'}, "JPEG 2000"}};
  for (const Known& known : kKnown)
    if (starts_with(bytes, known.magic)) throw Error(cat("{} is not supported: convert it to JPEG or PNG", known.name));
  throw Error(cat("not an image: it begins with \"{}\"", first_bytes(bytes)));
}

}  // namespace

DecodeInfo decode_image(Bytes bytes, int channels, Image& out, const DecodeLimits& limits, const ChooseRegion& region) {
  CHECK(channels == 1 || channels == 3, "images have 1 or 3 channels, not {}", channels);
  if (bytes.empty()) throw Error("the file is empty");
  if (bytes.size() > limits.file_bytes)
    throw Error(cat("{} bytes: larger than the limit of {}", bytes.size(), limits.file_bytes));
  if (starts_with(bytes, {0xFF, 0xD8, 0xFF})) return decode_jpeg(bytes, channels, out, limits, region);
  if (starts_with(bytes, {0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n'}))
    return decode_stb(bytes, ImageFormat::png, channels, out, limits);
  if (starts_with(bytes, {'B', 'M'})) return decode_stb(bytes, ImageFormat::bmp, channels, out, limits);
  if (starts_with(bytes, {'P', '5'}) || starts_with(bytes, {'P', '6'})) return decode_pnm(bytes, channels, out, limits);
  refuse_format(bytes);
}

void read_file(const std::string& path, std::vector<uint8_t>& bytes, const DecodeLimits& limits) {
  struct Descriptor {
    int value;
    ~Descriptor() {
      if (value >= 0) ::close(value);
    }
  };
  // Non-blocking, so that a named pipe among the images does not hang the run.
  const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (file.value < 0) throw Error(cat("cannot open the file: {}", std::strerror(errno)));
  struct stat status {};
  if (::fstat(file.value, &status) != 0) throw Error(cat("cannot examine the file: {}", std::strerror(errno)));
  if (!S_ISREG(status.st_mode)) throw Error("not a regular file");
  const auto size = static_cast<size_t>(status.st_size);
  if (size > limits.file_bytes) throw Error(cat("{} bytes: larger than the limit of {}", size, limits.file_bytes));
  bytes.resize(size);
  size_t done = 0;
  while (done < size) {
    const ssize_t got = ::read(file.value, bytes.data() + done, size - done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw Error(cat("cannot read the file: {}", std::strerror(errno)));
    if (got == 0) throw Error(cat("the file shrank while it was read, after {} of {} bytes", done, size));
    done += static_cast<size_t>(got);
  }
}

}  // namespace csml
