// The first frame of a GIF through giflib.
#include <gif_lib.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "data/formats.h"
#include "kernels/check.h"

namespace csml {
namespace {

struct Source {
  Bytes left;
};

int read_bytes(GifFileType* file, GifByteType* to, int count) {
  Bytes& left = static_cast<Source*>(file->UserData)->left;
  const size_t n = std::min(left.size(), static_cast<size_t>(count));
  if (n > 0) std::memcpy(to, left.data(), n);
  left = left.subspan(n);
  return static_cast<int>(n);
}

[[noreturn]] void fail(int code) {
  const char* reason = GifErrorString(code);
  throw Error(cat("truncated or damaged GIF: {}", reason ? reason : "no frame in it"));
}

using Gif = std::unique_ptr<GifFileType, void (*)(GifFileType*)>;

/// Reads on to the first frame's description. Returns the transparent index, or -1.
int find_first_frame(GifFileType* file) {
  int transparent = -1;
  for (;;) {
    GifRecordType type;
    if (DGifGetRecordType(file, &type) != GIF_OK) fail(file->Error);
    if (type == IMAGE_DESC_RECORD_TYPE) break;
    if (type != EXTENSION_RECORD_TYPE) throw Error("damaged GIF: no frame in it");
    int code = 0;
    GifByteType* block = nullptr;  // belongs to the file; its first byte is its length
    if (DGifGetExtension(file, &code, &block) != GIF_OK) fail(file->Error);
    while (block) {
      GraphicsControlBlock control;
      if (code == GRAPHICS_EXT_FUNC_CODE && DGifExtensionToGCB(block[0], block + 1, &control) == GIF_OK)
        transparent = control.TransparentColor;
      if (DGifGetExtensionNext(file, &block) != GIF_OK) fail(file->Error);
    }
  }
  if (DGifGetImageDesc(file) != GIF_OK) fail(file->Error);
  return transparent;
}

/// Rows of an interlaced frame come in four passes.
int row_of(int row, int height, bool interlaced) {
  if (!interlaced) return row;
  constexpr int kFirst[] = {0, 4, 2, 1}, kStep[] = {8, 8, 4, 2};
  for (int pass = 0; pass < 4; ++pass) {
    const int rows = (height - kFirst[pass] + kStep[pass] - 1) / kStep[pass];
    if (row < rows) return kFirst[pass] + row * kStep[pass];
    row -= std::max(rows, 0);
  }
  return 0;
}

struct Palette {
  uint8_t rgb[256][3];

  /// Entries that the file lacks are gray, as Pillow has them.
  explicit Palette(const ColorMapObject* map) {
    for (int i = 0; i < 256; ++i) {
      const bool given = map && i < map->ColorCount;
      rgb[i][0] = given ? map->Colors[i].Red : static_cast<uint8_t>(i);
      rgb[i][1] = given ? map->Colors[i].Green : static_cast<uint8_t>(i);
      rgb[i][2] = given ? map->Colors[i].Blue : static_cast<uint8_t>(i);
    }
  }
};

}  // namespace

DecodeInfo decode_gif(Bytes bytes, int channels, Image& out, const DecodeLimits& limits) {
  Source source{bytes};
  int code = 0;
  const Gif gif(DGifOpen(&source, read_bytes, &code), [](GifFileType* file) { DGifCloseFile(file, nullptr); });
  if (!gif) fail(code);
  const int transparent = find_first_frame(gif.get());
  const GifImageDesc& frame = gif->Image;
  if (frame.Left < 0 || frame.Top < 0 || frame.Width < 1 || frame.Height < 1)
    throw Error("damaged GIF: an empty frame");
  const int height = std::max(gif->SHeight, frame.Top + frame.Height);
  const int width = std::max(gif->SWidth, frame.Left + frame.Width);
  check_extent(height, width, limits);

  // The canvas shows the transparent colour, or the first, where the frame does not reach.
  const size_t row_bytes = static_cast<size_t>(width);
  std::vector<uint8_t> index(static_cast<size_t>(height) * row_bytes, static_cast<uint8_t>(std::max(transparent, 0)));
  for (int row = 0; row < frame.Height; ++row) {
    const int y = frame.Top + row_of(row, frame.Height, frame.Interlace);
    if (DGifGetLine(gif.get(), &index[static_cast<size_t>(y) * row_bytes + static_cast<size_t>(frame.Left)],
                    frame.Width) != GIF_OK)
      fail(gif->Error);
  }
  const Palette palette(frame.ColorMap ? frame.ColorMap : gif->SColorMap);
  out.reset(height, width, channels);
  for (size_t i = 0; i < index.size(); ++i)
    convert_pixels(palette.rgb[index[i]], 3, out.data() + i * static_cast<size_t>(channels), channels, 1);
  return {ImageFormat::gif, height, width, 0, {}};
}

}  // namespace csml
