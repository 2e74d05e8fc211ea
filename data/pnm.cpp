// Binary PGM and PPM.
#include <algorithm>
#include <cstring>
#include <vector>

#include "data/formats.h"
#include "kernels/check.h"

namespace csml {

// Not through stb_image: its 2022 snapshot reads past a 16-bit PNM when it changes the channels.
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

}  // namespace csml
