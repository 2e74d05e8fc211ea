#include "data/baseline_jpeg.h"

#ifdef __AVX2__

#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "data/jpeg_entropy.h"
#include "kernels/check.h"

namespace csml {
namespace {

using namespace jpeg;

/// At least n elements; a vector that shrinks and grows again would be filled with zeros each time.
template <class T>
void grow(std::vector<T>& memory, size_t n) {
  if (memory.size() < n) memory.resize(n);
}

// ---- entropy decoding ----------------------------------------------------------------------------------------------

/// Copies the entropy-coded bytes without their stuffing; `ends` gets the end of each restart interval. False unless
/// the restart markers are numbered in order and the end-of-image marker follows.
bool unstuff(std::span<const uint8_t> data, std::vector<uint8_t>& bytes, std::vector<size_t>& ends) {
  grow(bytes, data.size() + kPadding);
  ends.clear();
  const uint8_t *from = data.data(), *last = from + data.size();
  uint8_t* to = bytes.data();
  for (;;) {
    while (last - from >= 32) {
      const __m256i block = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), block);
      const auto marks = static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(block, _mm256_set1_epi8(-1))));
      const int plain = marks ? __builtin_ctz(marks) : 32;
      from += plain;
      to += plain;
      if (marks) break;
    }
    while (from < last && *from != 0xFF) *to++ = *from++;
    if (last - from < 2) return false;
    const uint8_t mark = from[1];
    from += 2;
    if (mark == 0) {
      *to++ = 0xFF;
      continue;
    }
    const size_t intervals = ends.size();
    ends.push_back(static_cast<size_t>(to - bytes.data()));
    if (mark == 0xD9) break;
    if (mark != 0xD0 + intervals % 8) return false;
  }
  std::memset(to, 0, kPadding);
  return true;
}

// ---- inverse DCT ---------------------------------------------------------------------------------------------------

/// 16 pairs of 16 bits: 8 of one block, 8 of another; the first four of either in `low`.
struct Pairs {
  __m256i low, high;
};
inline Pairs pairs(__m256i a, __m256i b) { return {_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b)}; }

/// 16 numbers of 32 bits in the same order.
struct Sums {
  __m256i low, high;
};
inline Sums operator+(Sums a, Sums b) { return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)}; }
inline Sums operator-(Sums a, Sums b) { return {_mm256_sub_epi32(a.low, b.low), _mm256_sub_epi32(a.high, b.high)}; }

/// a * x + b * y of each pair (x, y).
template <int a, int b>
inline Sums rotate(Pairs p) {
  const __m256i factors = _mm256_set1_epi32(static_cast<int>(static_cast<uint32_t>(b) << 16 | (a & 0xFFFF)));
  return {_mm256_madd_epi16(p.low, factors), _mm256_madd_epi16(p.high, factors)};
}
template <int shift>
inline __m256i packed(Sums x) {
  return _mm256_packs_epi32(_mm256_srai_epi32(x.low, shift), _mm256_srai_epi32(x.high, shift));
}

/// Sixteen transforms side by side along x[0..7] (Loeffler, Ligtenberg, Moschytz 1989, with 13 fraction bits), as the
/// "islow" method of the IJG's library rounds them; the results are shifted right by `shift`.
template <int shift>
inline void transform(__m256i (&x)[8]) {
  const Pairs p26 = pairs(x[2], x[6]);
  const Sums half = {_mm256_set1_epi32(1 << (shift - 1)), _mm256_set1_epi32(1 << (shift - 1))};
  // Sums wrap in 16 bits where libjpeg-turbo's do, which shows only in files that no picture was made into.
  const auto times_8192 = [](__m256i a) {
    const Pairs high = pairs(_mm256_setzero_si256(), a);
    return Sums{_mm256_srai_epi32(high.low, 3), _mm256_srai_epi32(high.high, 3)};
  };
  const Sums e0 = times_8192(_mm256_add_epi16(x[0], x[4])) + half;
  const Sums e1 = times_8192(_mm256_sub_epi16(x[0], x[4])) + half;
  const Sums e2 = rotate<4433, 4433 - 15137>(p26), e3 = rotate<4433 + 6270, 4433>(p26);
  const Sums even0 = e0 + e3, even3 = e0 - e3, even1 = e1 + e2, even2 = e1 - e2;

  const Pairs sums = pairs(_mm256_add_epi16(x[7], x[3]), _mm256_add_epi16(x[5], x[1]));
  const Sums z3 = rotate<9633 - 16069, 9633>(sums), z4 = rotate<9633, 9633 - 3196>(sums);
  const Pairs p71 = pairs(x[7], x[1]), p53 = pairs(x[5], x[3]);
  const Sums odd0 = rotate<2446 - 7373, -7373>(p71) + z3, odd1 = rotate<16819 - 20995, -20995>(p53) + z4;
  const Sums odd2 = rotate<-20995, 25172 - 20995>(p53) + z3, odd3 = rotate<-7373, 12299 - 7373>(p71) + z4;

  x[0] = packed<shift>(even0 + odd3), x[7] = packed<shift>(even0 - odd3);
  x[1] = packed<shift>(even1 + odd2), x[6] = packed<shift>(even1 - odd2);
  x[2] = packed<shift>(even2 + odd1), x[5] = packed<shift>(even2 - odd1);
  x[3] = packed<shift>(even3 + odd0), x[4] = packed<shift>(even3 - odd0);
}

/// Of two blocks side by side.
inline void transpose(__m256i (&x)[8]) {
  __m256i a[8], b[8];
  for (int i = 0; i < 4; ++i) {
    a[2 * i] = _mm256_unpacklo_epi16(x[2 * i], x[2 * i + 1]);
    a[2 * i + 1] = _mm256_unpackhi_epi16(x[2 * i], x[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 2; ++j) {
      b[4 * i + 2 * j] = _mm256_unpacklo_epi32(a[4 * i + j], a[4 * i + 2 + j]);
      b[4 * i + 2 * j + 1] = _mm256_unpackhi_epi32(a[4 * i + j], a[4 * i + 2 + j]);
    }
  for (int i = 0; i < 4; ++i) {
    x[2 * i] = _mm256_unpacklo_epi64(b[i], b[i + 4]);
    x[2 * i + 1] = _mm256_unpackhi_epi64(b[i], b[i + 4]);
  }
}

struct Block {
  alignas(64) int16_t coefficients[64];
  const uint16_t* quant;  // [64]
  uint8_t* out;           // 8 rows of 8 samples
  ptrdiff_t stride;

  void clear() {
    for (int i = 0; i < 4; ++i)
      _mm256_store_si256(reinterpret_cast<__m256i*>(coefficients) + i, _mm256_setzero_si256());
  }
};

// Both transforms are false where the first row of coefficients leaves 14 bits, which no picture's does: libjpeg-turbo
// then wraps or saturates, by whether the other rows are empty.

/// Samples of a block of which only the first coefficient is not zero.
bool fill_constant(const Block& block) {
  const int coefficient = static_cast<int16_t>(block.coefficients[0] * block.quant[0]);
  if (coefficient < -8192 || coefficient > 8191) return false;
  const int dc = (coefficient * 4 + 16) >> 5;
  for (int y = 0; y < 8; ++y) std::memset(block.out + y * block.stride, std::clamp(dc + 128, 0, 255), 8);
  return true;
}

/// Samples of two blocks, which may be one.
bool inverse_dct(const Block& one, const Block& two) {
  const auto both = [](const void* a, const void* b, int i) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(a) + i)),
                                   _mm_loadu_si128(static_cast<const __m128i*>(b) + i), 1);
  };
  __m256i x[8];
  for (int i = 0; i < 8; ++i)
    x[i] = _mm256_mullo_epi16(both(one.coefficients, two.coefficients, i), both(one.quant, two.quant, i));
  const __m256i in_range = _mm256_cmpeq_epi16(_mm256_srai_epi16(x[0], 13), _mm256_srai_epi16(x[0], 15));
  if (_mm256_movemask_epi8(in_range) != -1) return false;
  transform<13 - 2>(x);
  transpose(x);
  transform<13 + 2 + 3>(x);
  transpose(x);
  for (int y = 0; y < 8; y += 2) {
    const __m256i rows = _mm256_xor_si256(_mm256_packs_epi16(x[y], x[y + 1]), _mm256_set1_epi8(-128));
    const auto store = [y](const Block& block, __m128i two_rows) {
      _mm_storel_epi64(reinterpret_cast<__m128i*>(block.out + y * block.stride), two_rows);
      _mm_storel_epi64(reinterpret_cast<__m128i*>(block.out + (y + 1) * block.stride),
                       _mm_unpackhi_epi64(two_rows, two_rows));
    };
    store(one, _mm256_castsi256_si128(rows));
    store(two, _mm256_extracti128_si256(rows, 1));
  }
  return true;
}

/// Blocks on their way from entropy decoding to the transform, which takes two that are not the latest: loads that
/// follow narrower stores too closely would wait for them.
class BlockQueue {
 public:
  /// Where the next block is read to.
  Block& next() { return blocks_[(first_ + count_) % kSize]; }
  bool push() {
    if (++count_ < kSize - 1) return true;
    const bool done = inverse_dct(at(0), at(1));
    first_ = (first_ + 2) % kSize;
    count_ -= 2;
    return done;
  }
  bool finish() {
    const bool done = count_ == 0 || inverse_dct(at(0), at(count_ - 1));
    count_ = 0;
    return done;
  }

 private:
  static constexpr unsigned kSize = 4;
  Block& at(unsigned i) { return blocks_[(first_ + i) % kSize]; }
  Block blocks_[kSize];
  unsigned first_ = 0, count_ = 0;
};

// ---- upsampling and colour -----------------------------------------------------------------------------------------

/// One component's samples; every row has a place before its first and behind its last sample.
struct Plane {
  int h_half = 0, v_half = 0;  // 1: half the image's samples in this direction
  int height = 0, width = 0;   // real samples
  ptrdiff_t stride = 0;
  size_t tables = 0;            // place of its Huffman tables in the workspace
  std::vector<uint8_t> memory;  // whole MCUs
  uint8_t* row(int y) { return memory.data() + kMargin + y * stride; }
  static constexpr int kMargin = 64;
};

struct Workspace {
  std::vector<uint8_t> bytes;
  std::vector<size_t> ends;
  std::array<HuffmanTable, 3> dc, ac;
  std::array<Plane, 3> plane;
  std::array<std::vector<uint8_t>, 3> upsampled;
  std::vector<uint16_t> sums;
};

/// Samples of row y at the image's resolution for columns [x0, x1): between neighbours 3 : 1 (triangle), the rounding
/// alternating as in the IJG's library; samples past an edge repeat the edge's.
const uint8_t* full_row(Plane& plane, int y, int x0, int x1, std::vector<uint8_t>& memory,
                        std::vector<uint16_t>& sums) {
  if (!plane.h_half && !plane.v_half) return plane.row(y);
  grow(memory, static_cast<size_t>(plane.stride) * 2);
  uint8_t* __restrict out = memory.data();
  const int own = y >> plane.v_half;
  const int near = std::clamp(own + (y & 1 ? 1 : -1), 0, plane.height - 1);
  uint8_t *a = plane.row(own), *b = plane.row(near);
  if (!plane.h_half) {
    const int bias = y & 1 ? 2 : 1;
    for (int x = x0; x < x1; ++x) out[x] = static_cast<uint8_t>((3 * a[x] + b[x] + bias) >> 2);
    return out;
  }
  const int begin = x0 / 2, end = (x1 + 1) / 2;
  a[-1] = a[0], a[plane.width] = a[plane.width - 1];
  if (!plane.v_half) {
    for (int i = begin; i < end; ++i) {
      out[2 * i] = static_cast<uint8_t>((3 * a[i] + a[i - 1] + 1) >> 2);
      out[2 * i + 1] = static_cast<uint8_t>((3 * a[i] + a[i + 1] + 2) >> 2);
    }
    return out;
  }
  b[-1] = b[0], b[plane.width] = b[plane.width - 1];
  grow(sums, static_cast<size_t>(plane.stride) + 2);
  uint16_t* __restrict sum = sums.data() + 1;
  for (int i = begin - 1; i < end + 1; ++i) sum[i] = static_cast<uint16_t>(3 * a[i] + b[i]);
  for (int i = begin; i < end; ++i) {
    out[2 * i] = static_cast<uint8_t>((3 * sum[i] + sum[i - 1] + 8) >> 4);
    out[2 * i + 1] = static_cast<uint8_t>((3 * sum[i] + sum[i + 1] + 7) >> 4);
  }
  return out;
}

/// 16 bytes each of r, g, b, interleaved to 48 bytes.
inline void store_interleaved(__m128i r, __m128i g, __m128i b, uint8_t* out) {
  constexpr char n = -1;
  const auto merge = [&](__m128i at_r, __m128i at_g, __m128i at_b, uint8_t* to) {
    const __m128i rg = _mm_or_si128(_mm_shuffle_epi8(r, at_r), _mm_shuffle_epi8(g, at_g));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_or_si128(rg, _mm_shuffle_epi8(b, at_b)));
  };
  merge(_mm_setr_epi8(0, n, n, 1, n, n, 2, n, n, 3, n, n, 4, n, n, 5),
        _mm_setr_epi8(n, 0, n, n, 1, n, n, 2, n, n, 3, n, n, 4, n, n),
        _mm_setr_epi8(n, n, 0, n, n, 1, n, n, 2, n, n, 3, n, n, 4, n), out);
  merge(_mm_setr_epi8(n, n, 6, n, n, 7, n, n, 8, n, n, 9, n, n, 10, n),
        _mm_setr_epi8(5, n, n, 6, n, n, 7, n, n, 8, n, n, 9, n, n, 10),
        _mm_setr_epi8(n, 5, n, n, 6, n, n, 7, n, n, 8, n, n, 9, n, n), out + 16);
  merge(_mm_setr_epi8(n, 11, n, n, 12, n, n, 13, n, n, 14, n, n, 15, n, n),
        _mm_setr_epi8(n, n, 11, n, n, 12, n, n, 13, n, n, 14, n, n, 15, n),
        _mm_setr_epi8(10, n, n, 11, n, n, 12, n, n, 13, n, n, 14, n, n, 15), out + 32);
}

/// 16 pixels of Y Cb Cr (ITU-R BT.601, full range) as r, g, b; 16 fraction bits, rounded as the IJG's tables are.
inline void store_rgb(const uint8_t* y, const uint8_t* cb, const uint8_t* cr, uint8_t* out) {
  const auto widen = [](const uint8_t* p) {
    return _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  };
  const __m256i middle = _mm256_set1_epi16(128), one = _mm256_set1_epi16(1);
  const __m256i luma = widen(y), blue = _mm256_sub_epi16(widen(cb), middle), red = _mm256_sub_epi16(widen(cr), middle);
  // (c x + 2^15) >> 16 in 16 bits: ((2 x c >> 16) + 1) >> 1
  const auto scaled = [&](__m256i x, int c) {
    const __m256i high = _mm256_mulhi_epi16(_mm256_add_epi16(x, x), _mm256_set1_epi16(static_cast<int16_t>(c)));
    return _mm256_srai_epi16(_mm256_add_epi16(high, one), 1);
  };
  const __m256i r = _mm256_add_epi16(_mm256_add_epi16(luma, red), scaled(red, 91881 - 65536));
  const __m256i b =
      _mm256_add_epi16(_mm256_add_epi16(luma, _mm256_add_epi16(blue, blue)), scaled(blue, 116130 - 131072));
  // -0.34414 cb - 0.71414 cr = -cr + (-22554 cb + 18734 cr) / 2^16
  const __m256i factors = _mm256_set1_epi32(static_cast<int>(uint32_t{65536 - 46802} << 16 | (-22554 & 0xFFFF)));
  const __m256i half = _mm256_set1_epi32(1 << 15);
  const auto green = [&](__m256i p) {
    return _mm256_srai_epi32(_mm256_add_epi32(_mm256_madd_epi16(p, factors), half), 16);
  };
  const __m256i shift =
      _mm256_packs_epi32(green(_mm256_unpacklo_epi16(blue, red)), green(_mm256_unpackhi_epi16(blue, red)));
  const __m256i g = _mm256_add_epi16(_mm256_sub_epi16(luma, red), shift);
  const auto bytes = [](__m256i x) {
    return _mm_packus_epi16(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  };
  store_interleaved(bytes(r), bytes(g), bytes(b), out);
}

/// n pixels, 16 at a time; the planes may be read, but `out` not written, past the end.
void store_row(const uint8_t* const* in, int components, int channels, int n, uint8_t* out) {
  if (channels == 1) {
    std::memcpy(out, in[0], static_cast<size_t>(n));
    return;
  }
  const auto store = [&](int x, uint8_t* to) {
    if (components == 3) {
      store_rgb(in[0] + x, in[1] + x, in[2] + x, to);
    } else {
      const __m128i gray = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in[0] + x));
      store_interleaved(gray, gray, gray, to);
    }
  };
  int x = 0;
  for (; x + 16 <= n; x += 16) store(x, out + 3 * x);
  if (x < n) {
    uint8_t rest[48];
    store(x, rest);
    std::memcpy(out + 3 * x, rest, 3 * static_cast<size_t>(n - x));
  }
}

// ---- the scan ------------------------------------------------------------------------------------------------------

bool same(const BaselineScan::Component& a, const BaselineScan::Component& b) {
  return a.dc.values == b.dc.values && a.ac.values == b.ac.values;
}

int divided_up(int a, int b) { return (a + b - 1) / b; }

}  // namespace

bool decode_baseline(const BaselineScan& scan, const Window& region, Image& out) {
  CHECK(out.height() == scan.height && out.width() == scan.width && (out.channels() == 3 || scan.components == 1),
        "an image of {} x {} x {} for a scan of {} x {} x {}", out.height(), out.width(), out.channels(), scan.height,
        scan.width, scan.components);
  CHECK(region.y >= 0 && region.x >= 0 && region.height > 0 && region.width > 0 &&
            region.y + region.height <= scan.height && region.x + region.width <= scan.width,
        "region {}+{} x {}+{} does not lie in {} x {} pixels", region.x, region.width, region.y, region.height,
        scan.width, scan.height);
  constexpr int64_t kMostPixels = int64_t{1} << 24;  // bounds the memory that a thread keeps
  if (int64_t{scan.height} * scan.width > kMostPixels) return false;

  thread_local Workspace work;
  const bool single = scan.components == 1;  // then sampling factors mean nothing
  const int h_max = single ? 1 : scan.component[0].h, v_max = single ? 1 : scan.component[0].v;
  if (h_max < 1 || h_max > 2 || v_max < 1 || v_max > 2) return false;
  const int across = divided_up(scan.width, 8 * h_max), down = divided_up(scan.height, 8 * v_max);
  size_t tables = 0;  // of the component at hand
  for (size_t c = 0; c < static_cast<size_t>(scan.components); ++c) {
    const BaselineScan::Component& from = scan.component[c];
    Plane& plane = work.plane[c];
    const int h = single ? 1 : from.h, v = single ? 1 : from.v;
    if (h < 1 || h > h_max || v < 1 || v > v_max || !from.quant) return false;
    if (const bool shared = c == 2 && same(from, scan.component[1]); !shared) {
      if (!work.dc[c].build(from.dc, 11) || !work.ac[c].build(from.ac, 255)) return false;
      work.ac[c].pair();
      tables = c;
    }
    plane.tables = tables;
    plane.h_half = h < h_max, plane.v_half = v < v_max;
    plane.width = divided_up(scan.width, 1 + plane.h_half), plane.height = divided_up(scan.height, 1 + plane.v_half);
    if (plane.h_half && plane.width <= 2) return false;  // libjpeg repeats samples there
    plane.stride = ptrdiff_t{8} * across * h + Plane::kMargin;
    grow(plane.memory, static_cast<size_t>(plane.stride) * 8 * down * v + 2 * Plane::kMargin);
  }
  if (!unstuff(scan.data, work.bytes, work.ends)) return false;
  const int64_t mcus = int64_t{across} * down, interval = scan.restart_interval ? scan.restart_interval : mcus;
  if (static_cast<int64_t>(work.ends.size()) != (mcus + interval - 1) / interval) return false;

  // Upsampling looks two pixels beyond the region.
  const int column0 = std::max(region.x - 2, 0) / (8 * h_max), row0 = std::max(region.y - 2, 0) / (8 * v_max);
  const int column1 = divided_up(std::min(region.x + region.width + 2, scan.width), 8 * h_max);
  const int row1 = divided_up(std::min(region.y + region.height + 2, scan.height), 8 * v_max);

  BlockQueue blocks;
  BitReader in{work.bytes.data()};
  size_t segment = 0;
  int64_t left = interval;
  std::array<int, 3> last_dc{};
  int done = region.y;  // first row that is not written
  for (int my = 0; my < row1; ++my) {
    for (int mx = 0; mx < across; ++mx, --left) {
      const uint8_t* const end = work.bytes.data() + work.ends[segment];
      if (left == 0) {
        if (in.position() != end) return false;
        in = BitReader{end};
        ++segment;
        left = interval;
        last_dc = {};
      }
      const bool wanted = my >= row0 && mx >= column0 && mx < column1;
      for (size_t c = 0; c < static_cast<size_t>(scan.components); ++c) {
        Plane& plane = work.plane[c];
        const int h = h_max >> plane.h_half, v = v_max >> plane.v_half;
        for (int by = 0; by < v; ++by)
          for (int bx = 0; bx < h; ++bx) {
            Block& block = blocks.next();
            if (wanted) block.clear();
            const int last =
                read_block(in, work.dc[plane.tables], work.ac[plane.tables], last_dc[c], block.coefficients);
            if (last < 0 || in.position() > work.bytes.data() + work.ends[segment]) return false;
            if (!wanted) continue;
            block.quant = scan.component[c].quant;
            block.out = plane.row(8 * (my * v + by)) + 8 * (mx * h + bx), block.stride = plane.stride;
            if (!(last == 0 ? fill_constant(block) : blocks.push())) return false;
          }
      }
    }
    if (!blocks.finish()) return false;
    // The last row of an MCU row waits for the samples below it.
    const int ready = my + 1 == row1 ? scan.height : (my + 1) * 8 * v_max - (v_max - 1);
    for (; done < std::min(ready, region.y + region.height); ++done) {
      const uint8_t* rows[3] = {};
      for (size_t c = 0; c < static_cast<size_t>(scan.components); ++c)
        rows[c] =
            full_row(work.plane[c], done, region.x, region.x + region.width, work.upsampled[c], work.sums) + region.x;
      store_row(rows, scan.components, out.channels(), region.width,
                out.row(done) + ptrdiff_t{region.x} * out.channels());
    }
  }
  // Bytes left over behind the last MCU are damage that libjpeg counts.
  return row1 < down || in.position() == work.bytes.data() + work.ends[segment];
}

}  // namespace csml

#else

namespace csml {

bool decode_baseline(const BaselineScan&, const Window&, Image&) { return false; }

}  // namespace csml

#endif
