#include "apps/facts.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "apps/doctor.h"
#include "csml/method/method.h"
#include "data/loader.h"

namespace csml {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kLookedAt = 64;
constexpr uint64_t kGiB = uint64_t{1} << 30;

double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

bool has_colour(const ImageView& image) {
  if (image.channels < 3) return false;
  for (int y = 0; y < image.height; y += 4)
    for (int x = 0; x < image.width; x += 4) {
      const uint8_t* p = image.row(y) + ptrdiff_t{x} * image.channels;
      // JPEG's rounding alone makes grays differ by a few.
      if (std::abs(p[0] - p[1]) > 6 || std::abs(p[1] - p[2]) > 6) return true;
    }
  return false;
}

}  // namespace

uint64_t available_host_memory() {
  const Machine m = read_machine();
  return m.memory_limit > 0 ? std::min(m.available_memory, m.memory_limit) : m.available_memory;
}

Facts look_at(const Dataset& data, const Device& device, double hours) {
  const Machine machine = read_machine();
  Facts f;
  f.images = data.size();
  f.hours = hours;
  f.cores = machine.allowed_cores;
  if (machine.quota_cores > 0) f.cores = std::max(1.0, std::min(f.cores, machine.quota_cores));
  f.card = std::string(device.name()) != "cpu";
  // What a card has is not asked: 40 GiB are those of the smallest that this is made for.
  f.memory = f.card ? 40 * kGiB : available_host_memory();
  LoadScratch scratch;
  std::vector<int> sides;
  std::string first_error;
  f.gray = true;
  const int64_t count = std::min(kLookedAt, data.size());
  const Clock::time_point start = Clock::now();
  for (int64_t i = 0; i < count; ++i) {
    try {
      const ImageView image = data.view(i * data.size() / count, scratch);
      sides.push_back(std::min(image.height, image.width));
      if (has_colour(image)) f.gray = false;
    } catch (const Error& e) {
      if (first_error.empty()) first_error = e.what();
    }
  }
  if (sides.empty())
    throw Error(cat("no image could be read of the {} that were tried; the first: {}", count, first_error));
  f.decode_seconds = data.in_memory() ? 0 : since(start) / static_cast<double>(sides.size());
  std::nth_element(sides.begin(), sides.begin() + static_cast<std::ptrdiff_t>(sides.size() / 2), sides.end());
  f.short_side = sides[sides.size() / 2];
  return f;
}

double measure_speed(Device& device, const Config& config, const Dataset& data) {
  const auto method = make_method(device, config, data.channels());
  LoaderOptions options;
  options.workers = 0;
  options.batch_size = config.train.batch_size;
  Loader loader(data, method->views(), options);
  auto table = std::make_shared<NeighborTable>();
  table->k = 1;
  for (int64_t i = 0; i < data.size(); ++i) table->index.push_back(static_cast<int32_t>((i + 1) % data.size()));
  loader.start_epoch(0, 0, table);
  Batch batch;
  constexpr double kGuess = 20e9;
  if (!loader.next(batch)) return kGuess;
  std::vector<double> times;
  for (int step = 0; step < 4; ++step) {
    const Clock::time_point start = Clock::now();
    method->load(batch, {});
    method->step();
    method->finite().host<int32_t>();             // waits for the device
    if (step > 0) times.push_back(since(start));  // the first finds plans and memory
  }
  std::sort(times.begin(), times.end());
  const double seconds = times[times.size() / 2];
  const ModelConfig& m = config.model;
  return step_flop(config.method.name, m.depth, m.stem, m.width, config.augment.crop_size) * config.train.batch_size /
         std::max(1e-6, seconds);
}

}  // namespace csml
