// Features of real JPEG files through decoder, evaluation transform, normalisation and a full-width ResNet-50, against
// Pillow, torchvision and PyTorch.
#include <cstdlib>
#include <filesystem>

#include "data/augment.h"
#include "data/decode.h"
#include "models/resnet.h"
#include "models/weights.h"

#include "tests/backend.h"
#include "tests/files.h"
#include "tests/golden.h"

using namespace csml;
using namespace csml::test;
namespace fs = std::filesystem;

namespace {

constexpr int kSide = 224;
constexpr size_t kPixels = size_t{kSide} * kSide * 3;

/// Where the real images are; empty when they are not there.
fs::path image_folder() {
  const char* variable = std::getenv("CSML_DATA");
  const fs::path folder = variable ? fs::path(variable) : fs::path("../shared/data");
  for (const char* file : {"natural/imagenet_originals.tar", "robustness/robustness.tar.xz"})
    if (!fs::exists(folder / file)) return {};
  return fs::absolute(folder);
}

void unpack(const fs::path& archive, const fs::path& to, const std::vector<std::string>& files) {
  std::string command = cat("tar -xf '{}' -C '{}'", archive.string(), to.string());
  for (const std::string& file : files) command += cat(" '{}'", file);
  REQUIRE_MESSAGE(std::system(command.c_str()) == 0, command);
}

/// The value of a network tensor that a hash gives (tests/golden/README.md), in torchvision's layout.
NamedArray hashed_tensor(const std::string& name, const Shape& shape) {
  const uint64_t seed = test::seed_of(name);
  std::vector<double> u(static_cast<size_t>(shape.size()));
  for (size_t i = 0; i < u.size(); ++i) u[i] = hash_uniform(seed, i);
  if (shape.rank() == 4) {
    const double factor = std::sqrt(2.0 / static_cast<double>(shape[0] * shape[2] * shape[3]));
    for (double& x : u) x = (2 * x - 1) * std::sqrt(3.0) * factor;
    const size_t row = static_cast<size_t>(shape.row_size());
    for (size_t first = 0; first < u.size(); first += row) {
      double sum = 0;
      for (size_t i = first; i < first + row; ++i) sum += u[i];
      for (size_t i = first; i < first + row; ++i) u[i] -= sum / static_cast<double>(row);
    }
  } else if (name.ends_with("running_mean") || name.ends_with("bias")) {
    for (double& x : u) x = 0.2 * x - 0.1;
  } else {
    for (double& x : u) x = 0.5 + x;
  }
  NamedArray array{name, DType::f32, shape, std::vector<std::byte>(u.size() * sizeof(float))};
  for (size_t i = 0; i < u.size(); ++i) {
    const float value = static_cast<float>(u[i]);
    std::memcpy(array.data.data() + i * sizeof(float), &value, sizeof(float));
  }
  return array;
}

std::vector<double> cosines(const std::vector<float>& a, const std::vector<float>& b, size_t rows, bool centred) {
  const size_t dim = a.size() / rows;
  std::vector<double> mean_a(dim, 0), mean_b(dim, 0), result;
  for (size_t i = 0; i < a.size() && centred; ++i) {
    mean_a[i % dim] += a[i] / static_cast<double>(rows);
    mean_b[i % dim] += b[i] / static_cast<double>(rows);
  }
  for (size_t r = 0; r < rows; ++r) {
    double ab = 0, aa = 0, bb = 0;
    for (size_t d = 0; d < dim; ++d) {
      const double x = a[r * dim + d] - mean_a[d], y = b[r * dim + d] - mean_b[d];
      ab += x * y, aa += x * x, bb += y * y;
    }
    result.push_back(ab / std::sqrt(aa * bb));
  }
  return result;
}

}  // namespace

TEST_CASE("ResNet-50 features of real JPEG files equal torchvision's") {
  const fs::path data = image_folder();
  if (data.empty()) {
    MESSAGE(
        "skipped: natural/imagenet_originals.tar and robustness/robustness.tar.xz not present in CSML_DATA or "
        "../shared/data");
    return;
  }
  Golden golden("features_jpeg");
  const size_t count = static_cast<size_t>(std::stoi(golden.metadata().at("images")));
  std::vector<std::string> natural, odd, all;
  for (size_t i = 0; i < count; ++i) {
    all.push_back(golden.metadata().at(cat("file{:02d}", i)));
    (all.back().starts_with("robust/") ? odd : natural).push_back(all.back());
  }
  const Folder folder;
  unpack(data / "natural/imagenet_originals.tar", folder.path, natural);
  unpack(data / "robustness/robustness.tar.xz", folder.path, odd);

  // Pixels: decoded, short side to 256 (bicubic), central crop.
  std::vector<uint8_t> pixels(count * kPixels), bytes;
  Image image;
  ResizeScratch scratch;
  for (size_t i = 0; i < count; ++i) {
    read_file(folder.path / all[i], bytes);
    decode_image(bytes, 3, image);
    eval_image(image.view(), {.resize = 256, .size = kSide, .filter = Filter::bicubic}, pixels.data() + i * kPixels,
               scratch);
  }
  const std::vector<uint8_t> some = golden.values<uint8_t>("pixels_every_37");
  const std::vector<float> means = golden.values("pixel_mean");
  const size_t sampled = some.size() / count / 3;
  int largest = 0;
  size_t differing = 0;
  for (size_t i = 0; i < count; ++i) {
    double sum = 0;
    for (size_t j = 0; j < kPixels; ++j) sum += pixels[i * kPixels + j];
    CHECK(sum / static_cast<double>(kPixels) == doctest::Approx(means[i]).epsilon(1e-4));
    for (size_t j = 0; j < sampled; ++j)
      for (size_t c = 0; c < 3; ++c) {
        const int d = std::abs(pixels[i * kPixels + 37 * 3 * j + c] - some[(i * sampled + j) * 3 + c]);
        largest = std::max(largest, d);
        differing += d > 0;
      }
  }
  MESSAGE(cat("pixels: {} of {} differ from Pillow's, by at most {}", differing, some.size(), largest));
  CHECK(largest <= 2);  // 0 with the libjpeg-turbo that wrote the reference values; others may round once differently
  const bool same_decoder = differing == 0;

  const auto device = open_backend();
  const auto n = static_cast<int64_t>(count);
  const AugmentConfig normalise;  // ImageNet's mean and standard deviation
  const Tensor images = Tensor::from(*device, {n, kSide, kSide, 3}, pixels), input(*device, images.shape());
  augment(images, {}, input, normalise.mean, normalise.std);
  if (same_decoder) {
    const std::vector<float> x = input.host<float>();
    std::vector<float> every_37;
    for (size_t i = 0; i < count; ++i)
      for (size_t j = 0; j < sampled; ++j)
        for (size_t c = 0; c < 3; ++c) every_37.push_back(x[i * kPixels + 37 * 3 * j + c]);
    golden.expect("input_every_37", every_37);
  }

  Params params(*device);
  const ResNet net(params, {.depth = 50});
  params.build(0, false);
  std::vector<NamedArray> weights = to_host(params, "");
  for (NamedArray& a : weights) a = hashed_tensor(a.name, a.shape);
  from_host(params, weights, "");
  const NoGrad no_grad;
  const Stages stages = net(Var(input), Forward::inference());
  const std::vector<float> features = stages.pooled.value().host<float>(), want = golden.values("features");
  double worst = 1, worst_centred = 1;
  for (const double c : cosines(features, want, count, false)) {
    CHECK(c >= 0.9999);
    worst = std::min(worst, c);
  }
  // Without what all images have in common, where features of different images are far apart.
  for (const double c : cosines(features, want, count, true)) {
    CHECK(c >= 0.9999);
    worst_centred = std::min(worst_centred, c);
  }
  MESSAGE(cat("cosine to PyTorch's features: at least {:.9f}, centred {:.9f}", worst, worst_centred));
  if (!same_decoder) return;
  golden.expect("features", features);
  golden.expect("stem", global_avg_pool(max_pool(stages.stem, 3, 2, 1)).value());
  for (size_t i = 0; i < 3; ++i) golden.expect(cat("layer{}", i + 1), global_avg_pool(stages.stage[i]).value());
  CHECK(golden.unseen().empty());
}
