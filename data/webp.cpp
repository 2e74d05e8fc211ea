// WebP through libwebp; the first frame of an animation.
#include <webp/decode.h>
#include <webp/demux.h>

#include <memory>

#include "data/formats.h"
#include "kernels/check.h"

namespace csml {
namespace {

WebPBitstreamFeatures features_of(Bytes bytes) {
  WebPBitstreamFeatures features;
  const VP8StatusCode status = WebPGetFeatures(bytes.data(), bytes.size(), &features);
  if (status == VP8_STATUS_NOT_ENOUGH_DATA) throw Error("truncated WebP: the header is incomplete");
  if (status != VP8_STATUS_OK) throw Error("damaged WebP: its header cannot be read");
  return features;
}

/// The first frame on the animation's canvas, RGBA, into `rgb` without its alpha.
void first_frame(Bytes bytes, Image& rgb) {
  WebPAnimDecoderOptions options;
  CHECK(WebPAnimDecoderOptionsInit(&options), "libwebp has another version than its headers");
  options.color_mode = MODE_RGBA;
  const WebPData data{bytes.data(), bytes.size()};
  const std::unique_ptr<WebPAnimDecoder, void (*)(WebPAnimDecoder*)> decoder(WebPAnimDecoderNew(&data, &options),
                                                                             WebPAnimDecoderDelete);
  uint8_t* frame = nullptr;  // belongs to the decoder
  int time = 0;
  if (!decoder || !WebPAnimDecoderGetNext(decoder.get(), &frame, &time))
    throw Error("truncated or damaged WebP animation");
  const size_t pixels = static_cast<size_t>(rgb.height()) * rgb.width();
  for (size_t i = 0; i < pixels; ++i)
    for (size_t c = 0; c < 3; ++c) rgb.data()[3 * i + c] = frame[4 * i + c];
}

}  // namespace

DecodeInfo decode_webp(Bytes bytes, int channels, Image& out, const DecodeLimits& limits) {
  const WebPBitstreamFeatures features = features_of(bytes);
  check_extent(features.height, features.width, limits);
  Image raw;
  Image& rgb = channels == 3 ? out : raw;
  rgb.reset(features.height, features.width, 3);
  if (features.has_animation) {
    first_frame(bytes, rgb);
  } else if (!WebPDecodeRGBInto(bytes.data(), bytes.size(), rgb.data(), rgb.size(), 3 * features.width)) {
    throw Error("truncated or damaged WebP");
  }
  if (channels == 1) {
    out.reset(features.height, features.width, 1);
    convert_pixels(raw.data(), 3, out.data(), 1, static_cast<size_t>(features.height) * features.width);
  }
  return {ImageFormat::webp, features.height, features.width, 0, {}};
}

}  // namespace csml
