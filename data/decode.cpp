#include "data/decode.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <vector>

#include "data/formats.h"
#include "kernels/check.h"

namespace csml {
namespace {

using Decode = DecodeInfo (*)(Bytes, int, Image&, const DecodeLimits&, const ChooseRegion&);

/// A decoder that decodes whole images, whatever is asked for.
template <DecodeInfo (*decode)(Bytes, int, Image&, const DecodeLimits&)>
DecodeInfo whole(Bytes bytes, int channels, Image& out, const DecodeLimits& limits, const ChooseRegion&) {
  return decode(bytes, channels, out, limits);
}

// A decoder whose library was not there at the build is a file that CMake does not add.
#ifdef WITH_WEBP
constexpr Decode kWebp = whole<decode_webp>;
#else
constexpr Decode kWebp = nullptr;
#endif
#ifdef WITH_TIFF
constexpr Decode kTiff = whole<decode_tiff>;
#else
constexpr Decode kTiff = nullptr;
#endif
#ifdef WITH_GIF
constexpr Decode kGif = whole<decode_gif>;
#else
constexpr Decode kGif = nullptr;
#endif

/// Bytes that a file of the format has at some place; '?' stands for any.
struct Magic {
  std::string_view bytes;
  size_t at = 0;

  bool fits(Bytes file) const {
    if (file.size() < at + bytes.size()) return false;
    for (size_t i = 0; i < bytes.size(); ++i)
      if (bytes[i] != '?' && static_cast<uint8_t>(bytes[i]) != file[at + i]) return false;
    return true;
  }
};

struct Format {
  const char* name;
  std::vector<Magic> magics;               // one of them
  std::vector<std::string_view> suffixes;  // what names of such files end in; none for formats that are never read
  Decode decode;                           // nullptr: known, and not read by this build
};

using namespace std::string_view_literals;

/// All formats that are told apart. An image format is one row here and one file.
const std::vector<Format>& formats() {
  static const std::vector<Format> table = {
      {"JPEG", {{"\xFF\xD8\xFF"sv}}, {".jpg", ".jpeg"}, decode_jpeg},
      {"PNG", {{"\x89PNG\r\n\x1A\n"sv}}, {".png"}, whole<decode_png>},
      {"BMP", {{"BM"sv}}, {".bmp"}, whole<decode_bmp>},
      {"PNM", {{"P5"sv}, {"P6"sv}}, {".ppm", ".pgm"}, whole<decode_pnm>},
      {"WebP", {{"RIFF????WEBP"sv}}, {".webp"}, kWebp},
      {"TIFF", {{"II*\0"sv}, {"MM\0*"sv}, {"II+\0"sv}, {"MM\0+"sv}}, {".tif", ".tiff"}, kTiff},
      {"GIF", {{"GIF87a"sv}, {"GIF89a"sv}}, {".gif"}, kGif},
      {"ICO", {{"\0\0\1\0"sv}}, {}, nullptr},
      {"plain PBM", {{"P1"sv}}, {}, nullptr},
      {"plain PGM", {{"P2"sv}}, {}, nullptr},
      {"plain PPM", {{"P3"sv}}, {}, nullptr},
      {"PBM", {{"P4"sv}}, {}, nullptr},
      {"PFM", {{"PF"sv}}, {}, nullptr},
      {"JPEG 2000", {{"\0\0\0\x0CjP"sv}, {"\xFF\x4F\xFF\x51"sv}}, {}, nullptr},
      {"JPEG XL", {{"\0\0\0\x0CJXL"sv}, {"\xFF\x0A"sv}}, {}, nullptr},
      {"AVIF", {{"ftypavi"sv, 4}}, {}, nullptr},
      {"HEIC", {{"ftyphei"sv, 4}, {"ftyphev"sv, 4}, {"ftypmif1"sv, 4}, {"ftypmsf1"sv, 4}}, {}, nullptr},
      {"PSD", {{"8BPS"sv}}, {}, nullptr},
      {"SVG", {{"<svg"sv}, {"<?xml"sv}}, {}, nullptr},
      {"PDF", {{"%PDF"sv}}, {}, nullptr}};
  return table;
}

std::string first_bytes(Bytes bytes) {
  std::string text;
  for (size_t i = 0; i < std::min<size_t>(bytes.size(), 8); ++i)
    text += bytes[i] >= 32 && bytes[i] < 127 ? std::string(1, static_cast<char>(bytes[i])) : cat("\\x{:02x}", bytes[i]);
  return text;
}

/// a * b / 255, rounded as Pillow rounds.
inline int scaled(int a, int b) {
  const int t = a * b + 128;
  return ((t >> 8) + t) >> 8;
}

}  // namespace

void check_extent(int64_t height, int64_t width, const DecodeLimits& limits) {
  if (height < 1 || width < 1) throw Error(cat("the header gives an empty image ({} x {})", width, height));
  if (height > limits.side || width > limits.side)
    throw Error(cat("{} x {} pixels: a side is longer than the limit of {}", width, height, limits.side));
  if (height * width > limits.pixels)
    throw Error(cat("{} x {} pixels: more than the limit of {}", width, height, limits.pixels));
}

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

DecodeInfo decode_image(Bytes bytes, int channels, Image& out, const DecodeLimits& limits, const ChooseRegion& region) {
  CHECK(channels == 1 || channels == 3, "images have 1 or 3 channels, not {}", channels);
  if (bytes.empty()) throw Error("the file is empty");
  if (bytes.size() > limits.file_bytes)
    throw Error(cat("{} bytes: larger than the limit of {}", bytes.size(), limits.file_bytes));
  for (const Format& format : formats()) {
    if (std::none_of(format.magics.begin(), format.magics.end(), [&](const Magic& m) { return m.fits(bytes); }))
      continue;
    if (!format.decode && format.suffixes.empty())
      throw Error(cat("{} is not supported: convert it to JPEG or PNG", format.name));
    if (!format.decode)
      throw Error(
          cat("this csml was built without {}: build it where its library is installed (scripts/setup.sh), or "
              "convert the file to JPEG or PNG",
              format.name));
    return format.decode(bytes, channels, out, limits, region);
  }
  throw Error(cat("not an image: it begins with \"{}\"", first_bytes(bytes)));
}

bool is_image_name(const std::string& name) {
  std::string suffix = std::filesystem::path(name).extension().string();
  for (char& c : suffix) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  for (const Format& format : formats())
    if (format.decode && std::find(format.suffixes.begin(), format.suffixes.end(), suffix) != format.suffixes.end())
      return true;
  return false;
}

std::string image_suffixes() {
  std::string text;
  for (const Format& format : formats())
    for (const std::string_view suffix : format.suffixes)
      if (format.decode) text += cat("{}{}", text.empty() ? "" : ", ", suffix.substr(1));
  return text;
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
