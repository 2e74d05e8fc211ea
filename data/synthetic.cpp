// synthetic:shapes: procedurally drawn coloured shapes with labels, for tests and demonstrations without any files.
// The class is the shape; place, size, angle, colours, background and noise are drawn, so colour says nothing about it.
#include <algorithm>
#include <cmath>
#include <iterator>

#include "data/kinds.h"
#include "data/memory_dataset.h"
#include "data/square.h"
#include "kernels/check.h"
#include "kernels/random.h"

namespace csml {
namespace {

constexpr int kDefaultCount = 2000, kDefaultSize = 32;
const char* const kShapes[] = {"disc", "square", "triangle",  "ring",     "cross",
                               "star", "bar",    "half disc", "crescent", "pair"};
constexpr int kShapeCount = static_cast<int>(std::size(kShapes));
constexpr float kPi = 3.14159265358979f;

/// Signed distance (negative inside, roughly Euclidean) of (x, y) to a shape of radius about 1 around the origin.
float shape_distance(int shape, float x, float y) {
  const float r = std::hypot(x, y);
  const auto box = [](float px, float py, float w, float h) { return std::max(std::abs(px) - w, std::abs(py) - h); };
  switch (shape) {
    case 0:
      return r - 0.9f;
    case 1:
      return box(x, y, 0.75f, 0.75f);
    case 2:
      return std::max({0.866f * x + 0.5f * y, -0.866f * x + 0.5f * y, -y}) - 0.5f;
    case 3:
      return std::abs(r - 0.75f) - 0.22f;
    case 4:
      return std::min(box(x, y, 0.95f, 0.28f), box(x, y, 0.28f, 0.95f));
    case 5: {  // five rays: the radius swings between 0.4 and 1 five times around
      const float phase = std::abs(std::remainder(std::atan2(y, x), 2 * kPi / 5)) / (kPi / 5);
      return (r - (1 - 0.6f * phase)) * 0.6f;
    }
    case 6:
      return box(x, y, 1.0f, 0.25f);
    case 7:
      return std::max(r - 0.95f, -y - 0.1f);
    case 8:
      return std::max(r - 0.95f, 0.75f - std::hypot(x - 0.4f, y));
    default:
      return std::min(std::hypot(x - 0.55f, y), std::hypot(x + 0.55f, y)) - 0.42f;
  }
}

void draw_image(uint64_t split, uint64_t index, int shape, int size, uint8_t* out) {
  Random random(0, Purpose::synthetic, split, index);
  const float radius = size * random.uniform(0.22f, 0.42f);
  const float center_x = size * random.uniform(0.35f, 0.65f), center_y = size * random.uniform(0.35f, 0.65f);
  const float angle = random.uniform(0, 2 * kPi), cosine = std::cos(angle), sine = std::sin(angle);
  float ink[3], corner[2][3], contrast = 0;
  do {  // shape and background must be told apart
    contrast = 0;
    for (int c = 0; c < 3; ++c) {
      ink[c] = random.uniform(0, 255);
      corner[0][c] = random.uniform(0, 255);
      corner[1][c] = std::clamp(corner[0][c] + random.uniform(-60, 60), 0.0f, 255.0f);
      contrast += std::abs(ink[c] - 0.5f * (corner[0][c] + corner[1][c]));
    }
  } while (contrast < 180);
  const float slope = random.uniform(0, 2 * kPi), slope_x = std::cos(slope) / size, slope_y = std::sin(slope) / size;
  const float noise = random.uniform(2, 14);
  for (int y = 0; y < size; ++y)
    for (int x = 0; x < size; ++x) {
      const float px = (static_cast<float>(x) + 0.5f - center_x) / radius;
      const float py = (static_cast<float>(y) + 0.5f - center_y) / radius;
      const float d = shape_distance(shape, cosine * px + sine * py, cosine * py - sine * px) * radius;
      const float cover = std::clamp(0.5f - d, 0.0f, 1.0f);  // one pixel of soft edge
      const float t = std::clamp(0.5f + (x - 0.5f * size) * slope_x + (y - 0.5f * size) * slope_y, 0.0f, 1.0f);
      const float grain = noise * (random.uniform() + random.uniform() - 1);
      for (int c = 0; c < 3; ++c) {
        const float ground = corner[0][c] + t * (corner[1][c] - corner[0][c]);
        *out++ = static_cast<uint8_t>(std::clamp(ground + cover * (ink[c] - ground) + grain, 0.0f, 255.0f) + 0.5f);
      }
    }
}

}  // namespace

std::unique_ptr<Dataset> open_synthetic(const DatasetSpec& spec, const DecodeLimits&) {
  if (spec.path != "shapes") throw UsageError(cat("data set synthetic:{}: did you mean synthetic:shapes?", spec.path));
  const int64_t count = spec.limit > 0 ? spec.limit : kDefaultCount;
  const int size = spec.size > 0 ? spec.size : kDefaultSize;
  const size_t plane = static_cast<size_t>(size) * size;
  if (count > (int64_t{8} << 30) / static_cast<int64_t>(plane * 3))
    throw UsageError(cat("data set synthetic:shapes: {} images of {} pixels need more than 8 GiB", count, size));
  MemoryDataset::Content content{"synthetic", "shapes", size, size, spec.channels, {}, {}, {}};
  content.class_names.assign(std::begin(kShapes), std::end(kShapes));
  content.pixels.resize(static_cast<size_t>(count) * plane * static_cast<size_t>(spec.channels));
  std::vector<uint8_t> image(plane * 3);
  for (int64_t i = 0; i < count; ++i) {
    const int shape = static_cast<int>(i % kShapeCount);
    draw_image(spec.test ? 1 : 0, static_cast<uint64_t>(i), shape, size, image.data());
    store_pixels({image.data(), size, size, 3, ptrdiff_t{3} * size}, spec.channels,
                 content.pixels.data() + static_cast<size_t>(i) * plane * static_cast<size_t>(spec.channels));
    content.labels.push_back(shape);
  }
  return std::make_unique<MemoryDataset>(std::move(content));
}

}  // namespace csml
