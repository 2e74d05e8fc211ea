// The reference of Backend::Augment, written as the definition reads: one image at a time, all in double.
#include <algorithm>
#include <numeric>

#include "kernels/color.h"
#include "tests/reference.h"

namespace csml::test::reference {

namespace {

/// One image [H,W,C] in [0,1].
struct Image {
  int64_t h, w, c;
  std::vector<double> v;

  double* pixel(int64_t i) { return v.data() + i * c; }
  int64_t pixels() const { return h * w; }
};

double gray_of(const double* p, int64_t channels) {
  return channels == 1 ? p[0] : 0.299 * p[0] + 0.587 * p[1] + 0.114 * p[2];
}

void clamp(Image& image) {
  for (double& x : image.v) x = std::clamp(x, 0.0, 1.0);
}

/// Turns the hue of one RGB pixel; value and saturation stay. Foley et al., "Computer Graphics", the hexcone model.
void turn_hue(double* p, double turns) {
  const double value = std::max({p[0], p[1], p[2]}), chroma = value - std::min({p[0], p[1], p[2]});
  if (chroma == 0) return;
  double sixth = 0;  // hue in sixths of a turn
  if (value == p[0])
    sixth = (p[1] - p[2]) / chroma;
  else if (value == p[1])
    sixth = (p[2] - p[0]) / chroma + 2;
  else
    sixth = (p[0] - p[1]) / chroma + 4;
  sixth += 6 * turns;
  const double offset[3] = {5, 3, 1};  // channel = value - chroma * clamp(min(k, 4 - k), 0, 1), k = offset + hue mod 6
  for (int c = 0; c < 3; ++c) {
    double k = std::fmod(offset[c] + sixth, 6.0);
    if (k < 0) k += 6;
    p[c] = value - chroma * std::clamp(std::min(k, 4 - k), 0.0, 1.0);
  }
}

void jitter(Image& image, int kind, const ColorParams& params) {
  const bool color = image.c == 3;
  if (kind == 0) {
    for (double& x : image.v) x *= params.brightness;
  } else if (kind == 1) {
    double mean = 0;
    for (int64_t i = 0; i < image.pixels(); ++i)
      mean += gray_of(image.pixel(i), image.c) / static_cast<double>(image.pixels());
    for (double& x : image.v) x = (x - mean) * params.contrast + mean;
  } else if (kind == 2 && color) {
    for (int64_t i = 0; i < image.pixels(); ++i) {
      double* p = image.pixel(i);
      const double gray = gray_of(p, 3);
      for (int c = 0; c < 3; ++c) p[c] = (p[c] - gray) * params.saturation + gray;
    }
  } else if (kind == 3 && color) {
    for (int64_t i = 0; i < image.pixels(); ++i) turn_hue(image.pixel(i), params.hue);
  }
  clamp(image);
}

/// Index of the mirrored pixel: ... 2 1 0 1 2 ... n-2 n-1 n-2 ...
int64_t reflect(int64_t i, int64_t n) {
  if (n == 1) return 0;
  const int64_t period = 2 * (n - 1);
  i = ((i % period) + period) % period;
  return i < n ? i : period - i;
}

void blur(Image& image, double sigma) {
  const int64_t radius = static_cast<int64_t>(std::ceil(3 * sigma));
  std::vector<double> weight(static_cast<size_t>(2 * radius + 1));
  for (int64_t i = -radius; i <= radius; ++i)
    weight[static_cast<size_t>(i + radius)] = std::exp(-0.5 * static_cast<double>(i * i) / (sigma * sigma));
  const double total = std::accumulate(weight.begin(), weight.end(), 0.0);
  for (const bool rows : {false, true}) {
    const std::vector<double> from = image.v;
    for (int64_t h = 0; h < image.h; ++h)
      for (int64_t w = 0; w < image.w; ++w)
        for (int64_t c = 0; c < image.c; ++c) {
          double sum = 0;
          for (int64_t i = -radius; i <= radius; ++i) {
            const int64_t y = rows ? reflect(h + i, image.h) : h, x = rows ? w : reflect(w + i, image.w);
            sum += weight[static_cast<size_t>(i + radius)] / total *
                   from[static_cast<size_t>((y * image.w + x) * image.c + c)];
          }
          image.v[static_cast<size_t>((h * image.w + w) * image.c + c)] = sum;
        }
  }
}

}  // namespace

Array augment(const Array& images, const Array& params, const std::array<float, 4>& mean,
              const std::array<float, 4>& std) {
  const Shape& s = images.shape;
  Array y(s);
  for (int64_t n = 0; n < s[0]; ++n) {
    Image image{s[1], s[2], s[3], {}};
    for (int64_t i = 0; i < s.row_size(); ++i) image.v.push_back(images[n * s.row_size() + i] / 255);
    bool flip = false;
    if (params.size()) {
      float row[ColorParams::kColumns];
      for (int i = 0; i < ColorParams::kColumns; ++i)
        row[i] = static_cast<float>(params[n * ColorParams::kColumns + i]);
      ColorParams p;
      std::memcpy(&p, row, sizeof p);
      if (p.order >= 0) {
        std::array<int, 4> order{0, 1, 2, 3};  // permutations are numbered in lexicographic order
        for (int i = 0; i < static_cast<int>(p.order); ++i) std::next_permutation(order.begin(), order.end());
        for (int kind : order) jitter(image, kind, p);
      }
      if (p.gray == 1 && s[3] == 3)
        for (int64_t i = 0; i < image.pixels(); ++i) {
          const double gray = gray_of(image.pixel(i), 3);
          for (int c = 0; c < 3; ++c) image.pixel(i)[c] = gray;
        }
      if (p.blur_sigma > 0) blur(image, p.blur_sigma);
      if (p.solarize == 1)
        for (double& x : image.v) x = x >= 0.5 ? 1 - x : x;
      flip = p.flip == 1;
    }
    for (int64_t i = 0; i < s.row_size(); ++i) {
      const int64_t c = i % s[3], w = i / s[3] % s[2], h = i / s[3] / s[2];
      const double x = image.v[static_cast<size_t>((h * s[2] + (flip ? s[2] - 1 - w : w)) * s[3] + c)];
      y[n * s.row_size() + i] = (x - mean[static_cast<size_t>(c)]) / std[static_cast<size_t>(c)];
    }
  }
  return y;
}

}  // namespace csml::test::reference
