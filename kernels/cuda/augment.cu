// Augmentation: u8 crops to normalised images in at most two passes over them, and CutMix. y of augment and a, b, y of
// cut_mix are f32, bf16 or f16. The formulas of the colour operations are kernels/pixel.h's, as on the CPU.
#include "kernels/cuda/launch.cuh"
#include "kernels/pixel.h"

namespace csml::cuda {

namespace {

// ---- one image's parameters and its pixels before the blur ----------------------------------------------------------

/// ColorParams made ready; the same for all threads of a block.
struct Color {
  bool valid = true, solarize = false, flip = false, gray = false;
  int order = 0;  // jitter_order()
  bool jitter = false;
  float brightness = 1, contrast = 1, saturation = 1;
  float hue = 0, turns = 0;  // hue in sixths
  float sigma = 0;
};

/// params: the image's row, or null.
DEVICE Color color_of(const float* params, Failure* failure, int64_t image) {
  Color c;
  if (!params) return c;
  ColorParams p;
  p.brightness = params[0], p.contrast = params[1], p.saturation = params[2], p.hue = params[3];
  p.order = params[4], p.gray = params[5], p.blur_sigma = params[6], p.solarize = params[7], p.flip = params[8];
  c.valid = p.order >= -1 && p.order < 24 && p.blur_sigma >= 0 && p.blur_sigma <= kMaxBlurSigma;
  if (!c.valid) {
    if (thread() == 0) report(failure, Failure::color_params, image, static_cast<int64_t>(p.order), 24);
    return c;
  }
  c.jitter = p.order >= 0;
  if (c.jitter) c.order = jitter_order(static_cast<int>(p.order));
  c.brightness = p.brightness, c.contrast = p.contrast, c.saturation = p.saturation;
  c.hue = sixths_of(p.hue), c.turns = p.hue;
  c.gray = p.gray != 0, c.solarize = p.solarize != 0, c.flip = p.flip != 0;
  c.sigma = p.blur_sigma;
  return c;
}

struct Pixel {
  float r, g, b;
};

/// Channels C of 3 or 1; of one channel all three are equal.
template <int C>
DEVICE Pixel load_pixel(const uint8_t* at) {
  constexpr float kScale = 1.f / 255;
  if constexpr (C == 1) {
    const float x = static_cast<float>(at[0]) * kScale;
    return {x, x, x};
  } else {
    return {static_cast<float>(at[0]) * kScale, static_cast<float>(at[1]) * kScale, static_cast<float>(at[2]) * kScale};
  }
}

/// The jitter; until_contrast: only what comes before the contrast, which needs the mean of that.
template <int C>
DEVICE Pixel jittered(Pixel x, const Color& c, float mean, bool until_contrast) {
  if (!c.jitter) return x;
  for (int position = 0; position < 4; ++position) {
    const Jitter what = jitter_at(c.order, position);
    if (what == kBrightness && c.brightness != 1) {
      x = {clamp_unit(x.r * c.brightness), clamp_unit(x.g * c.brightness), clamp_unit(x.b * c.brightness)};
    } else if (what == kContrast) {
      if (until_contrast) return x;
      const float shift = mean - mean * c.contrast;
      if (c.contrast != 1)
        x = {clamp_unit(x.r * c.contrast + shift), clamp_unit(x.g * c.contrast + shift),
             clamp_unit(x.b * c.contrast + shift)};
    } else if (C == 3 && what == kSaturation && c.saturation != 1) {
      saturate(x.r, x.g, x.b, c.saturation);
    } else if (C == 3 && what == kHue && c.turns != 0) {
      turn_hue(x.r, x.g, x.b, c.hue);
    }
  }
  return x;
}

/// The pixel as the blur sees it.
template <int C>
DEVICE Pixel colored(const uint8_t* at, const Color& c, float mean) {
  Pixel x = jittered<C>(load_pixel<C>(at), c, mean, false);
  if (C == 3 && c.gray) x.r = x.g = x.b = gray_of(x.r, x.g, x.b);
  return x;
}

// ---- the mean that contrast needs -----------------------------------------------------------------------------------

constexpr int kMeanThreads = 256;
constexpr int kMeanPixels = 4096;  // of one block

/// partial[image, chunk] = sum of the gray pixels before the contrast. Bytes: reads the images whose contrast changes
/// once (the others not at all). FLOPs: about 60 a pixel; the bytes are the floor.
template <int C>
KERNEL void gray_sum_kernel(const uint8_t* images, const float* params, float* partial, int64_t pixels, int chunks,
                            Failure* failure) {
  const int64_t image = block().x / chunks, chunk = block().x % chunks;
  const Color c = color_of(params + image * ColorParams::kColumns, failure, image);
  if (!c.jitter || c.contrast == 1) return;
  const uint8_t* from = images + image * pixels * C;
  const int64_t end = min(pixels, (chunk + 1) * kMeanPixels);
  float sum = 0;
  for (int64_t i = chunk * kMeanPixels + thread(); i < end; i += kMeanThreads) {
    const Pixel x = jittered<C>(load_pixel<C>(from + i * C), c, 0, true);
    sum += C == 1 ? x.r : gray_of(x.r, x.g, x.b);
  }
  sum = block_sum(sum);
  if (thread() == 0) partial[block().x] = sum;
}

// ---- the image ------------------------------------------------------------------------------------------------------

constexpr int kThreads = 256;
constexpr int kTile = 32;         // a block computes kTile x kTile pixels
constexpr int kSharedRadius = 8;  // blurs up to sigma 2.66 (the methods draw up to 2) go through shared memory
constexpr int kSide = kTile + 2 * kSharedRadius;  // a row of shared pixels: aligned to packs of 4

struct Images {
  const uint8_t* data;
  const float* params;
  const float* gray_sums;  // [images, chunks]
  int64_t height, width;
  int chunks, across, tiles;  // chunks of gray_sums; tiles across and of an image
};

/// y = x * scale + shift per channel: (x - mean) / std.
struct Normalise {
  float scale[3], shift[3];
};

/// Weight of distance i from the middle before normalisation.
DEVICE float bell(int64_t i, float sigma) {
  const float z = static_cast<float>(i) / sigma;
  return std::exp(-0.5f * z * z);
}

/// A blur too wide for shared memory, one pixel by its definition: (2 radius + 1)^2 taps. Slow, for any sigma.
template <int C>
DEVICE Pixel wide_blur(const uint8_t* from, const Images& in, const Color& c, float mean, int64_t row, int64_t column) {
  const int64_t radius = static_cast<int64_t>(std::ceil(3 * c.sigma));
  Pixel sum{0, 0, 0};
  float total = 0;
  for (int64_t j = -radius; j <= radius; ++j) {
    Pixel across{0, 0, 0};
    const int64_t y = reflect(row + j, in.height);
    for (int64_t i = -radius; i <= radius; ++i) {
      const Pixel x = colored<C>(from + (y * in.width + reflect(column + i, in.width)) * C, c, mean);
      const float w = bell(i, c.sigma);
      across.r += w * x.r, across.g += w * x.g, across.b += w * x.b;
    }
    const float w = bell(j, c.sigma);
    sum.r += w * across.r, sum.g += w * across.g, sum.b += w * across.b;
    total += w;
  }
  const float scale = 1 / (total * total);
  return {sum.r * scale, sum.g * scale, sum.b * scale};
}

template <int C, class T>
DEVICE void store_pixel(T* y, Pixel x, const Color& c, const Normalise& n) {
  if (c.solarize) x = {solarized(x.r), solarized(x.g), solarized(x.b)};
  y[0] = T(x.r * n.scale[0] + n.shift[0]);
  if constexpr (C == 3) {
    y[1] = T(x.g * n.scale[1] + n.shift[1]);
    y[2] = T(x.b * n.scale[2] + n.shift[2]);
  }
}

/// Gaussian taps, distance from the middle first; 0 beyond the reach.
template <int kRadius>
struct Taps {
  float w[kRadius + 1];

  DEVICE explicit Taps(const Shared<float>& taps) {
    CSML_UNROLL
    for (int k = 0; k <= kRadius; ++k) w[k] = taps[k];
  }
  /// Of the middle at x[kRadius].
  DEVICE float apply(const float* x) const {
    float sum = w[0] * x[kRadius];
    CSML_UNROLL
    for (int k = 1; k <= kRadius; ++k) sum += w[k] * (x[kRadius - k] + x[kRadius + k]);
    return sum;
  }
};

constexpr int kRun = 4;  // outputs of a thread that follow each other: their windows overlap in registers

/// Along rows: rows[plane, r, c] for c < kTile from pixels[plane, r, c .. c + 2 kRadius].
template <int kRadius>
DEVICE void blur_rows(const Shared<float>& pixels, const Shared<float>& rows, const Shared<float>& weights,
                      int planes) {
  constexpr int kHeight = kTile + 2 * kRadius, kAcross = kTile / kRun, kWindow = kRun + 2 * kRadius;
  static_assert(kWindow % 4 == 0);
  const Taps<kRadius> taps(weights);
  for (int i = thread(); i < planes * kHeight * kAcross; i += kThreads) {
    const int plane = i / (kHeight * kAcross), row = i / kAcross % kHeight, column = i % kAcross * kRun;
    float window[kWindow];
    CSML_UNROLL
    for (int k = 0; k < kWindow; k += 4) {
      const Pack<float, 4> x = load_pack<4>(pixels, (plane * kSide + row) * kSide + column + k);
      for (int e = 0; e < 4; ++e) window[k + e] = x[e];
    }
    Pack<float, kRun> out;
    CSML_UNROLL
    for (int k = 0; k < kRun; ++k) out[k] = taps.apply(window + k);
    store_pack(rows, (plane * kSide + row) * kTile + column, out);
  }
}

/// Along columns, one plane: x[k] at (row + k, column) from rows[plane, row + k .. row + k + 2 kRadius, column].
template <int kRadius>
DEVICE void blur_columns(const Shared<float>& rows, const Taps<kRadius>& taps, int plane, int row, int column,
                         float (&x)[kRun]) {
  float window[kRun + 2 * kRadius];
  CSML_UNROLL
  for (int k = 0; k < kRun + 2 * kRadius; ++k) window[k] = rows[(plane * kSide + row + k) * kTile + column];
  CSML_UNROLL
  for (int k = 0; k < kRun; ++k) x[k] = taps.apply(window + k);
}

/// f(Width<R>{}) with the least of the radii 2, 4, 6, 8 that reaches as far.
template <class F>
DEVICE void with_radius(float reach, F&& f) {
  if (reach <= 2) return f(Width<2>{});
  if (reach <= 4) return f(Width<4>{});
  if (reach <= 6) return f(Width<6>{});
  f(Width<kSharedRadius>{});
}

/// One tile of one image: colours on load (with a margin for the blur), blur along rows, then along columns in shared
/// memory, normalised and mirrored on the way out. A thread blurs four outputs that follow each other out of registers.
/// Bytes: reads the image once (plus the margins, from the caches), writes y once: C * (1 + sizeof(T)) a pixel, which
/// is the floor: 256 images of 224 x 224 x 3 to 16 bits are 116 MB. FLOPs: about 100 a pixel, and 12 * (2 radius + 1)
/// for the blur: up to 250, of which the margins make 1.9 times as many at radius 6. Shared memory: with w = 4 + 2
/// radius, a pixel and channel loads w / 16 packs along rows and w / 4 values along columns.
template <int C, class T>
KERNEL_BOUNDS(kThreads, 2)
void augment_kernel(Images in, Normalise normalise, T* y, Failure* failure) {
  SHARED(float, pixels, C* kSide* kSide);
  SHARED(float, rows, C* kSide* kTile);
  SHARED(float, taps, kWarp);
  const int64_t image = block().x / in.tiles, tile = block().x % in.tiles;
  const Color c = color_of(in.params ? in.params + image * ColorParams::kColumns : nullptr, failure, image);
  if (!c.valid) return;
  const uint8_t* from = in.data + image * in.height * in.width * C;
  T* to = y + image * in.height * in.width * C;
  const int64_t row0 = tile / in.across * kTile, column0 = tile % in.across * kTile;

  float mean = 0;
  if (c.jitter && c.contrast != 1) {  // every warp for itself
    double sum = 0;
    for (int i = lane(); i < in.chunks; i += kWarp) sum += in.gray_sums[image * in.chunks + i];
    mean = static_cast<float>(warp_sum(sum) / static_cast<double>(in.height * in.width));
  }
  const auto target = [&](int64_t row, int64_t column) {
    return to + (row * in.width + (c.flip ? in.width - 1 - column : column)) * C;
  };

  const float reach = std::ceil(3 * c.sigma);
  if (!(reach > 0) || reach > kSharedRadius) {
    for (int i = thread(); i < kTile * kTile; i += kThreads) {
      const int64_t row = row0 + i / kTile, column = column0 + i % kTile;
      if (row >= in.height || column >= in.width) continue;
      const Pixel x = reach > 0 ? wide_blur<C>(from, in, c, mean, row, column)
                                : colored<C>(from + (row * in.width + column) * C, c, mean);
      store_pixel<C>(target(row, column), x, c, normalise);
    }
    return;
  }

  const int planes = C == 1 || c.gray ? 1 : 3;
  if (warp() == 0) {
    const float weight = static_cast<float>(lane()) <= reach ? bell(lane(), c.sigma) : 0;
    const float total = warp_sum(lane() == 0 ? weight : 2 * weight);
    taps[lane()] = weight / total;
  }
  with_radius(reach, [&]<int kRadius>(Width<kRadius>) {
    constexpr int kWide = kTile + 2 * kRadius;
    for (int i = thread(); i < kWide * kWide; i += kThreads) {
      const int64_t row = reflect(row0 - kRadius + i / kWide, in.height);
      const int64_t column = reflect(column0 - kRadius + i % kWide, in.width);
      const Pixel x = colored<C>(from + (row * in.width + column) * C, c, mean);
      const int at = i / kWide * kSide + i % kWide;
      pixels[at] = x.r;
      if constexpr (C == 3)
        if (planes == 3) {
          pixels[kSide * kSide + at] = x.g;
          pixels[2 * kSide * kSide + at] = x.b;
        }
    }
    sync_block();
    blur_rows<kRadius>(pixels, rows, taps, planes);
    sync_block();
    static_assert(kTile * kTile == kThreads * kRun, "a thread has four pixels of a column");
    const int row = thread() / kTile * kRun, column = thread() % kTile;
    const Taps<kRadius> weights(taps);
    float x[C][kRun];
    CSML_UNROLL
    for (int plane = 0; plane < C; ++plane) {
      if (plane < planes)
        blur_columns(rows, weights, plane, row, column, x[plane]);
      else
        for (int k = 0; k < kRun; ++k) x[plane][k] = x[0][k];
    }
    CSML_UNROLL
    for (int k = 0; k < kRun; ++k) {
      if (row0 + row + k >= in.height || column0 + column >= in.width) break;
      store_pixel<C>(target(row0 + row + k, column0 + column), Pixel{x[0][k], x[C / 2][k], x[C - 1][k]}, c, normalise);
    }
  });
}

template <int C, class T>
void augment_as(Context& context, const Backend::Augment& args, const Normalise& normalise) {
  const int64_t count = args.images.shape[0], height = args.images.shape[1], width = args.images.shape[2];
  const int64_t chunks = ceil_div(height * width, kMeanPixels);
  const int64_t across = ceil_div(width, kTile), tiles = across * ceil_div(height, kTile);
  const uint8_t* images = args.images.as<uint8_t>();
  const float* params = args.params ? args.params.as<float>() : nullptr;
  float* sums = params ? context.scratch<float>(count * chunks) : nullptr;
  if (params)
    launch(context, {.name = "augment mean", .grid = {count * chunks}, .threads = kMeanThreads}, gray_sum_kernel<C>,
           images, params, sums, height * width, static_cast<int>(chunks), context.failure());
  launch(context, {.name = "augment", .grid = {count * tiles}, .threads = kThreads}, augment_kernel<C, T>,
         Images{images, params, sums, height, width, static_cast<int>(chunks), static_cast<int>(across),
                static_cast<int>(tiles)},
         normalise, args.y.as<T>(), context.failure());
}

// ---- CutMix ---------------------------------------------------------------------------------------------------------

/// A warp to a row of an image, packs of N. Bytes: reads a outside the box and b inside it, writes y: 2 * sizeof(T) a
/// value, which is the floor; no arithmetic.
template <int N, class T>
KERNEL void cut_mix_kernel(const T* a, const T* b, const int32_t* box, T* y, int64_t rows, int64_t height,
                           int64_t width, int64_t channels) {
  const int64_t y0 = box[0], x0 = min(max(int64_t{box[1]}, int64_t{0}), width) * channels;
  const int64_t y1 = box[2], x1 = min(max(int64_t{box[3]}, int64_t{0}), width) * channels;
  const int64_t size = width * channels;
  for (int64_t row = grid_thread() / kWarp; row < rows; row += grid_threads() / kWarp) {
    const int64_t h = row % height;
    const bool crosses = h >= y0 && h < y1;
    const int64_t begin = crosses ? x0 : 0, end = crosses ? x1 : 0;
    for (int64_t i = lane() * N; i < size; i += kWarp * N) {
      const int64_t at = row * size + i;
      if (i >= begin && i + N <= end) {
        store_pack(y + at, load_pack<N>(b + at));
        continue;
      }
      Pack<T, N> value = load_pack<N>(a + at);
      if (i < end && i + N > begin) {
        const Pack<T, N> other = load_pack<N>(b + at);
        for (int j = 0; j < N; ++j)
          if (i + j >= begin && i + j < end) value[j] = other[j];
      }
      store_pack(y + at, value);
    }
  }
}

}  // namespace

void augment(Context& context, const Backend::Augment& args) {
  const Shape& shape = args.images.shape;
  CHECK(shape.rank() == 4 && (shape[3] == 1 || shape[3] == 3) && args.y.shape == shape,
        "augment: images {} into y {}: both must be [N, H, W, 3] or [N, H, W, 1]", shape.text(), args.y.shape.text());
  CHECK(!args.params || args.params.shape == (Shape{shape[0], ColorParams::kColumns}),
        "augment: params is {}, must be [{}, {}]", args.params.shape.text(), shape[0], int{ColorParams::kColumns});
  Normalise normalise{};
  for (int c = 0; c < shape[3]; ++c) {
    CHECK(args.std[c] > 0, "augment: std[{}] = {} must be positive", c, args.std[c]);
    normalise.scale[c] = static_cast<float>(1.0 / args.std[c]);
    normalise.shift[c] = static_cast<float>(-static_cast<double>(args.mean[c]) / args.std[c]);
  }
  if (shape.size() == 0) return;
  with_float_type(args.y.dtype, [&]<class T>(T) {
    if (shape[3] == 3)
      augment_as<3, T>(context, args, normalise);
    else
      augment_as<1, T>(context, args, normalise);
  });
}

void cut_mix(Context& context, const Backend::CutMix& args) {
  const Shape& shape = args.y.shape;
  CHECK(shape.rank() == 4 && args.a.shape == shape && args.b.shape == shape, "cut_mix: a {}, b {}, y {} must be equal",
        args.a.shape.text(), args.b.shape.text(), shape.text());
  CHECK(args.box.size() == 4, "cut_mix: box is {}, must be [4]", args.box.shape.text());
  const int64_t rows = shape[0] * shape[1], size = shape[2] * shape[3];
  if (rows * size == 0) return;
  with_float_type(args.y.dtype, [&]<class T>(T) {
    const T *a = args.a.as<T>(), *b = args.b.as<T>();
    T* y = args.y.as<T>();
    const int32_t* box = args.box.as<int32_t>();
    const Launch how{.name = "cut_mix", .grid = grid_for(context, rows * kWarp)};
    if (size % kPack<T> == 0 && aligned(a) && aligned(b) && aligned(y))
      launch(context, how, cut_mix_kernel<kPack<T>, T>, a, b, box, y, rows, shape[1], shape[2], shape[3]);
    else
      launch(context, how, cut_mix_kernel<1, T>, a, b, box, y, rows, shape[1], shape[2], shape[3]);
  });
}

}  // namespace csml::cuda
