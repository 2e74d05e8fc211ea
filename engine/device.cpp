#include "engine/device.h"

#include <omp.h>

#include <algorithm>
#include <charconv>

#include "kernels/cpu/backend.h"
#if WITH_CUDA
#include "engine/log.h"
#include "kernels/cuda/backend.h"
#include "kernels/cuda/facts.h"
#endif

namespace csml {

namespace {

std::unique_ptr<Backend> open_cuda(const std::string& spec, [[maybe_unused]] int card) {
#if WITH_CUDA
  try {
    auto backend = std::make_unique<CudaBackend>(card);
    for (const std::string& line : cuda::library_warnings()) log_warn(line);
    return backend;
  } catch (const Error& error) { throw Error(cat("device '{}': {}", spec, error.what())); }
#else
  throw Error(cat("device '{}': this build has no CUDA backend; use --device cpu", spec));
#endif
}

/// The first card where there is one that csml can use, else the CPU. A card that cannot be used is worth a warning.
std::unique_ptr<Backend> open_best() {
#if WITH_CUDA
  if (CudaBackend::sees_a_card()) {
    try {
      return open_cuda("auto", 0);
    } catch (const Error& error) { log_warn(cat("{}; going on with the CPU", error.what())); }
  }
#endif
  return std::make_unique<CpuBackend>();
}

/// N of "cuda:N", 0 of "cuda"; nothing else is a card.
bool parse_card(const std::string& spec, int& card) {
  constexpr std::string_view kPrefix = "cuda:";
  card = 0;
  if (spec == "cuda") return true;
  if (spec.rfind(kPrefix, 0) != 0 || spec.size() == kPrefix.size()) return false;
  const char *begin = spec.data() + kPrefix.size(), *end = spec.data() + spec.size();
  const auto [last, error] = std::from_chars(begin, end, card);
  return error == std::errc() && last == end && card >= 0;
}

}  // namespace

void set_compute_threads(int threads) { omp_set_num_threads(threads > 0 ? threads : omp_get_num_procs()); }

int compute_threads() { return omp_get_max_threads(); }

CudaFacts cuda_facts() {
#if WITH_CUDA
  return cuda::facts();
#else
  return {};
#endif
}

int usable_cards() {
#if WITH_CUDA
  return cuda::usable_cards();
#else
  return 0;
#endif
}

Storage::~Storage() { pool_->give(data_, capacity_); }

Pool::~Pool() { trim(); }

std::pair<void*, size_t> Pool::take(size_t bytes) {
  constexpr size_t kUnit = 512;
  bytes = std::max(kUnit, (bytes + kUnit - 1) / kUnit * kUnit);
  // The smallest that fits, as if the lender's were here: a repeated run finds the blocks that it used before.
  Pool* from = nullptr;
  std::multimap<size_t, void*>::iterator best;
  for (Pool* pool : {this, lender_}) {
    if (!pool) continue;
    const auto fits = pool->free_.lower_bound(bytes);
    if (fits == pool->free_.end() || fits->first > bytes + bytes / 4) continue;
    if (!from || fits->first < best->first) from = pool, best = fits;
  }
  std::pair<void*, size_t> block;
  if (from) {
    block = {best->second, best->first};
    from->free_.erase(best);
    from->stats_.reserved -= block.second;
    stats_.reserved += block.second;
  } else {
    block = {backend_.allocate(bytes), bytes};
    stats_.reserved += bytes;
    ++stats_.growths;
  }
  stats_.in_use += block.second;
  stats_.peak = std::max(stats_.peak, stats_.in_use);
  return block;
}

void Pool::give(void* data, size_t capacity) {
  stats_.in_use -= capacity;
  free_.emplace(capacity, data);
}

void Pool::trim() {
  for (auto& [capacity, data] : free_) {
    backend_.release(data);
    stats_.reserved -= capacity;
  }
  free_.clear();
}

std::unique_ptr<Device> Device::open(const std::string& spec) {
  int card = 0;
  if (spec == "auto") return std::make_unique<Device>(open_best());
  if (spec == "cpu") return std::make_unique<Device>(std::make_unique<CpuBackend>());
  if (parse_card(spec, card)) return std::make_unique<Device>(open_cuda(spec, card));
  throw UsageError(cat("device '{}' is unknown; use auto, cpu, cuda or cuda:N", spec));
}

Device::Device(std::unique_ptr<Backend> backend)
    : backend_(std::move(backend)), main_(std::make_shared<Pool>(*backend_)), current_(main_) {}

std::shared_ptr<Storage> Device::allocate(size_t bytes) {
  std::pair<void*, size_t> block;
  try {
    block = current_->take(bytes);
  } catch (const Error&) {
    if (current_ != main_) throw;  // a recording's free blocks are not free: its replay uses them
    main_->trim();                 // blocks of other sizes may be what is in the way
    block = current_->take(bytes);
  }
  return std::make_shared<Storage>(*this, current_, block.first, block.second);
}

ArenaStats Device::stats() const {
  ArenaStats total = main_->stats();
  for (const auto& weak : recordings_)
    if (auto recording = weak.lock()) {
      const ArenaStats& s = recording->pool_->stats();
      total.reserved += s.reserved;
      total.in_use += s.in_use;
      total.peak += s.peak;
      total.growths += s.growths;
    }
  return total;
}

std::shared_ptr<RecordedStep> Device::record(const std::function<void()>& work, bool reuse) {
  CHECK(current_ == main_, "a recording is already under way");
  auto recording = std::make_shared<RecordedStep>();
  recording->pool_ = std::make_shared<Pool>(*backend_);
  if (reuse) recording->pool_->take_from(main_.get());
  current_ = recording->pool_;
  const auto end = [&] {
    recording->pool_->take_from(nullptr);
    current_ = main_;
  };
  try {
    recording->replay_ = backend_->record(work);
  } catch (...) {
    end();
    throw;
  }
  end();
  recordings_.push_back(recording);
  return recording;
}

}  // namespace csml
