// Philox 4x32-10 counter generator and the keys of every draw: the same numbers on host and device, in any order.
// Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define CSML_HD __host__ __device__
#else
#define CSML_HD
#endif

namespace csml {

struct Philox4 {
  uint32_t v[4];
};

/// Ten rounds of Philox 4x32: counter (four words) under key (two words) -> four uniform 32-bit words.
CSML_HD inline Philox4 philox(Philox4 counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * counter.v[0];
    const uint64_t p1 = uint64_t{0xCD9E8D57u} * counter.v[2];
    counter = {{static_cast<uint32_t>(p1 >> 32) ^ counter.v[1] ^ key0, static_cast<uint32_t>(p1),
                static_cast<uint32_t>(p0 >> 32) ^ counter.v[3] ^ key1, static_cast<uint32_t>(p0)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

/// Why a number is drawn. Part of the key, so two purposes never share numbers.
enum class Purpose : uint32_t {
  init = 1,       // parameter initialisation (sample = parameter index)
  order = 2,      // order of the samples of an epoch
  crop = 3,       // crop and flip of one view
  color = 4,      // colour jitter, gray, blur, solarize of one view
  neighbor = 5,   // which of a sample's neighbours is drawn
  cutmix = 6,     // lambda and box of a step
  shuffle = 7,    // batch-norm shuffle permutation of a step
  queue = 8,      // initial queue rows
  synthetic = 9,  // synthetic images
  split = 10,     // class-balanced subsets and hold-outs
  replace = 11,   // which image replaces a bad one
  test = 12,      // tests and benchmarks
  probe = 13,     // order and augmentation of probes
  patch = 14,     // patch windows
};

/// A stream of draws named by (seed, purpose, a, b, view); holds no state but its position. Two streams with different
/// names are independent; the same name gives the same numbers on every machine, thread and process count.
/// Convention: a = epoch or step, b = sample, view = view number.
class Random {
 public:
  CSML_HD Random(uint64_t seed, Purpose purpose, uint64_t a = 0, uint64_t b = 0, uint32_t view = 0)
      // b takes 40 bits and a 40 bits: a data set of 1e12 images, 1e12 steps.
      : key0_(static_cast<uint32_t>(seed) ^ (static_cast<uint32_t>(purpose) * 0x9E3779B1u)),
        key1_(static_cast<uint32_t>(seed >> 32) ^ (view * 0x85EBCA77u)),
        a_(static_cast<uint32_t>(a)),
        b_(static_cast<uint32_t>(b)),
        high_(static_cast<uint32_t>((a >> 32) & 0xFF) << 24 | static_cast<uint32_t>((b >> 32) & 0xFF) << 16) {}

  CSML_HD uint32_t bits() {
    if (used_ == 4) {
      block_ = philox({{index_++, a_, b_, high_}}, key0_, key1_);
      used_ = 0;
    }
    return block_.v[used_++];
  }
  /// Uniform in [0, 1), 24 bits.
  CSML_HD float uniform() { return static_cast<float>(bits() >> 8) * (1.0f / 16777216.0f); }
  /// Uniform in [low, high).
  CSML_HD float uniform(float low, float high) { return low + (high - low) * uniform(); }
  /// Uniform integer in [0, n), n >= 1; multiply-shift, bias below n / 2^32.
  CSML_HD uint32_t below(uint32_t n) { return static_cast<uint32_t>((uint64_t{bits()} * n) >> 32); }
  /// Standard normal (Box-Muller, one of the pair).
  CSML_HD float normal() {
    const float u = (static_cast<float>(bits() >> 8) + 0.5f) * (1.0f / 16777216.0f);
    const float v = uniform();
    return std::sqrt(-2.0f * std::log(u)) * std::cos(6.28318530717958647692f * v);
  }

 private:
  uint32_t key0_, key1_, a_, b_, high_;
  uint32_t index_ = 0;
  int used_ = 4;
  Philox4 block_{};
};

}  // namespace csml
