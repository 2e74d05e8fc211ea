#include "data/baseline_jpeg.h"

#ifdef __AVX2__

#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/check.h"

namespace csml {
namespace {

// ---- entropy decoding ----------------------------------------------------------------------------------------------

constexpr int kPeek = 10;         // bits of one table look-up
constexpr size_t kPadding = 512;  // more than one block can read past the end: 64 symbols of at most 31 bits

/// Position in row order of the k-th coefficient; a run that passes the end lands on the last one.
constexpr std::array<uint8_t, 64 + 16> kNatural = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13,
    6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31,
    39, 46, 53, 60, 61, 54, 47, 55, 62, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63};

/// The signed number that `size` bits stand for (T.81, figure F.12).
inline int extend(int bits, int size) { return bits < 1 << (size - 1) ? bits - (1 << size) + 1 : bits; }

struct HuffmanTable {
  /// What the next kPeek bits begin with. value != 0: a run of run - 1 zeros and this coefficient, `length` bits in
  /// all. Else `run` is the symbol and `length` its code's, 0 where the code is longer than kPeek.
  struct Entry {
    int16_t value;
    uint8_t run, length;
  };
  std::array<Entry, 1 << kPeek> entry;
  std::array<int, 18> end;     // [l]: first code of l bits that is none, or 0
  std::array<int, 18> offset;  // values[code + offset[l]]
  const uint8_t* values;

  /// False for a table that no encoder writes; libjpeg says what is wrong with it.
  bool build(const BaselineScan::Huffman& from, int largest_symbol) {
    if (!from.counts || !from.values) return false;
    values = from.values;
    entry.fill({0, 0, 0});
    int code = 0, index = 0;
    for (int length = 1; length <= 16; ++length, code <<= 1) {
      offset[static_cast<size_t>(length)] = index - code;
      for (int i = 0; i < from.counts[length]; ++i, ++index, ++code) {
        if (index >= 256 || code >= 1 << length || from.values[index] > largest_symbol) return false;
        if (length <= kPeek) fill(code, length, values[index]);
      }
      end[static_cast<size_t>(length)] = code;
    }
    return true;
  }

 private:
  void fill(int code, int length, uint8_t symbol) {
    const int size = symbol & 15, free = kPeek - length;
    Entry* at = &entry[static_cast<size_t>(code) << free];
    for (int rest = 0; rest < 1 << free; ++rest) {
      at[rest] = {0, symbol, static_cast<uint8_t>(length)};
      if (size == 0 || size > free) continue;
      at[rest] = {static_cast<int16_t>(extend(rest >> (free - size), size)), static_cast<uint8_t>((symbol >> 4) + 1),
                  static_cast<uint8_t>(length + size)};
    }
  }
};

/// The next bits, highest first: at least 56 valid ones after refill().
struct BitReader {
  const uint8_t* next;
  uint64_t bits = 0;
  int count = 0;

  inline void refill() {
    uint64_t word;
    std::memcpy(&word, next, sizeof word);
    bits |= __builtin_bswap64(word) >> count;
    next += (63 - count) >> 3;
    count |= 56;
  }
  inline void drop(int n) {
    bits <<= n;
    count -= n;
  }
  inline int take(int n) {
    const int value = static_cast<int>(bits >> (64 - n));
    drop(n);
    return value;
  }
  /// Bytes touched by the bits that are used up.
  const uint8_t* position() const { return next - (count >> 3); }
};

/// The symbol that begins the bits, for codes that the entry does not decide; -1: no code.
inline int next_symbol(BitReader& in, const HuffmanTable& table, HuffmanTable::Entry entry) {
  if (entry.length) {
    in.drop(entry.length);
    return entry.run;
  }
  for (int length = kPeek + 1; length <= 16; ++length) {
    const int code = static_cast<int>(in.bits >> (64 - length));
    if (code >= table.end[static_cast<size_t>(length)]) continue;
    in.drop(length);
    return table.values[code + table.offset[static_cast<size_t>(length)]];
  }
  return -1;
}

/// Reads one block into zeros; the place of its last coefficient, or -1 for damage.
inline int read_block(BitReader& in, const HuffmanTable& dc, const HuffmanTable& ac, int& last_dc, int16_t* block) {
  in.refill();
  HuffmanTable::Entry entry = dc.entry[in.bits >> (64 - kPeek)];
  if (entry.value) {
    in.drop(entry.length);
    last_dc += entry.value;
  } else {
    const int size = next_symbol(in, dc, entry);
    if (size < 0 || size > 11) return -1;
    if (size) last_dc += extend(in.take(size), size);
  }
  block[0] = static_cast<int16_t>(last_dc);
  int k = 0;
  const auto whole_entry = [&] {
    entry = ac.entry[in.bits >> (64 - kPeek)];
    if (!entry.value) return false;
    in.drop(entry.length);
    k += entry.run;
    block[kNatural[static_cast<size_t>(k)]] = entry.value;
    return true;
  };
  while (k < 63) {
    in.refill();  // enough for two whole entries and a longest code with its bits
    if (whole_entry() && (k >= 63 || (whole_entry() && (k >= 63 || whole_entry())))) continue;
    const int symbol = next_symbol(in, ac, entry), size = symbol & 15;
    if (symbol == 0) break;
    if (symbol < 0) return -1;
    k += (symbol >> 4) + 1;
    if (size) {
      block[kNatural[static_cast<size_t>(k)]] = static_cast<int16_t>(extend(in.take(size), size));
    } else if (symbol != 0xF0) {
      return -1;
    }
  }
  return k > 63 ? -1 : k;
}

/// Copies the entropy-coded bytes without their stuffing; `ends` gets the end of each restart interval. False unless
/// the restart markers are numbered in order and the end-of-image marker follows.
bool unstuff(std::span<const uint8_t> data, std::vector<uint8_t>& bytes, std::vector<size_t>& ends) {
  bytes.resize(data.size() + kPadding);
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

/// 8 pairs (a, b) of 16 bits.
inline __m256i pairs(__m128i a, __m128i b) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_unpacklo_epi16(a, b)), _mm_unpackhi_epi16(a, b), 1);
}
/// a * x + b * y of each pair (x, y).
template <int a, int b>
inline __m256i rotate(__m256i p) {
  return _mm256_madd_epi16(p, _mm256_set1_epi32(static_cast<int>(static_cast<uint32_t>(b) << 16 | (a & 0xFFFF))));
}
template <int shift>
inline __m256i packed(__m256i a, __m256i b) {
  return _mm256_permute4x64_epi64(_mm256_packs_epi32(_mm256_srai_epi32(a, shift), _mm256_srai_epi32(b, shift)), 0xD8);
}

/// Eight transforms side by side along x[0..7] (Loeffler, Ligtenberg, Moschytz 1989, with 13 fraction bits), as the
/// "islow" method of the IJG's library rounds them; the results are shifted right by `shift`.
template <int shift>
inline void transform(__m128i (&x)[8]) {
  const __m256i p04 = pairs(x[0], x[4]), p26 = pairs(x[2], x[6]);
  const __m256i half = _mm256_set1_epi32(1 << (shift - 1));
  const __m256i e0 = _mm256_add_epi32(rotate<8192, 8192>(p04), half);
  const __m256i e1 = _mm256_add_epi32(rotate<8192, -8192>(p04), half);
  const __m256i e2 = rotate<4433, 4433 - 15137>(p26), e3 = rotate<4433 + 6270, 4433>(p26);
  const __m256i even0 = _mm256_add_epi32(e0, e3), even3 = _mm256_sub_epi32(e0, e3);
  const __m256i even1 = _mm256_add_epi32(e1, e2), even2 = _mm256_sub_epi32(e1, e2);

  const __m256i sums = pairs(_mm_add_epi16(x[7], x[3]), _mm_add_epi16(x[5], x[1]));
  const __m256i z3 = rotate<9633 - 16069, 9633>(sums), z4 = rotate<9633, 9633 - 3196>(sums);
  const __m256i p71 = pairs(x[7], x[1]), p53 = pairs(x[5], x[3]);
  const __m256i odd0 = _mm256_add_epi32(rotate<2446 - 7373, -7373>(p71), z3);
  const __m256i odd1 = _mm256_add_epi32(rotate<16819 - 20995, -20995>(p53), z4);
  const __m256i odd2 = _mm256_add_epi32(rotate<-20995, 25172 - 20995>(p53), z3);
  const __m256i odd3 = _mm256_add_epi32(rotate<-7373, 12299 - 7373>(p71), z4);

  const __m256i y01 = packed<shift>(_mm256_add_epi32(even0, odd3), _mm256_add_epi32(even1, odd2));
  const __m256i y23 = packed<shift>(_mm256_add_epi32(even2, odd1), _mm256_add_epi32(even3, odd0));
  const __m256i y45 = packed<shift>(_mm256_sub_epi32(even3, odd0), _mm256_sub_epi32(even2, odd1));
  const __m256i y67 = packed<shift>(_mm256_sub_epi32(even1, odd2), _mm256_sub_epi32(even0, odd3));
  x[0] = _mm256_castsi256_si128(y01), x[1] = _mm256_extracti128_si256(y01, 1);
  x[2] = _mm256_castsi256_si128(y23), x[3] = _mm256_extracti128_si256(y23, 1);
  x[4] = _mm256_castsi256_si128(y45), x[5] = _mm256_extracti128_si256(y45, 1);
  x[6] = _mm256_castsi256_si128(y67), x[7] = _mm256_extracti128_si256(y67, 1);
}

inline void transpose(__m128i (&x)[8]) {
  __m128i a[8], b[8];
  for (int i = 0; i < 4; ++i) {
    a[2 * i] = _mm_unpacklo_epi16(x[2 * i], x[2 * i + 1]);
    a[2 * i + 1] = _mm_unpackhi_epi16(x[2 * i], x[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 2; ++j) {
      b[4 * i + 2 * j] = _mm_unpacklo_epi32(a[4 * i + j], a[4 * i + 2 + j]);
      b[4 * i + 2 * j + 1] = _mm_unpackhi_epi32(a[4 * i + j], a[4 * i + 2 + j]);
    }
  for (int i = 0; i < 4; ++i) {
    x[2 * i] = _mm_unpacklo_epi64(b[i], b[i + 4]);
    x[2 * i + 1] = _mm_unpackhi_epi64(b[i], b[i + 4]);
  }
}

/// Samples of a block with coefficients up to place `last`, into 8 rows.
void inverse_dct(const int16_t* block, const uint16_t* quant, int last, uint8_t* out, ptrdiff_t stride) {
  const __m128i middle = _mm_set1_epi8(-128);
  if (last == 0) {
    const int dc = (static_cast<int16_t>(block[0] * quant[0]) * 4 + 16) >> 5;
    for (int y = 0; y < 8; ++y) std::memset(out + y * stride, std::clamp(dc + 128, 0, 255), 8);
    return;
  }
  __m128i x[8];
  for (int i = 0; i < 8; ++i)
    x[i] = _mm_mullo_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(block) + i),
                           _mm_loadu_si128(reinterpret_cast<const __m128i*>(quant) + i));
  transform<13 - 2>(x);
  transpose(x);
  transform<13 + 2 + 3>(x);
  transpose(x);
  for (int y = 0; y < 8; y += 2) {
    const __m128i rows = _mm_xor_si128(_mm_packs_epi16(x[y], x[y + 1]), middle);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out + y * stride), rows);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out + (y + 1) * stride), _mm_unpackhi_epi64(rows, rows));
  }
}

// ---- upsampling and colour -----------------------------------------------------------------------------------------

/// One component's samples; every row has a place before its first and behind its last sample.
struct Plane {
  int h_half = 0, v_half = 0;  // 1: half the image's samples in this direction
  int height = 0, width = 0;   // real samples
  ptrdiff_t stride = 0;
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
  memory.resize(static_cast<size_t>(plane.stride) * 2);
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
  sums.resize(static_cast<size_t>(plane.stride) + 2);
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
  for (size_t c = 0; c < static_cast<size_t>(scan.components); ++c) {
    const BaselineScan::Component& from = scan.component[c];
    Plane& plane = work.plane[c];
    const int h = single ? 1 : from.h, v = single ? 1 : from.v;
    if (h < 1 || h > h_max || v < 1 || v > v_max || !from.quant) return false;
    if (!work.dc[c].build(from.dc, 15) || !work.ac[c].build(from.ac, 255)) return false;
    plane.h_half = h < h_max, plane.v_half = v < v_max;
    plane.width = divided_up(scan.width, 1 + plane.h_half), plane.height = divided_up(scan.height, 1 + plane.v_half);
    if (plane.h_half && plane.width <= 2) return false;  // libjpeg repeats samples there
    plane.stride = ptrdiff_t{8} * across * h + Plane::kMargin;
    plane.memory.resize(static_cast<size_t>(plane.stride) * 8 * down * v + 2 * Plane::kMargin);
  }
  if (!unstuff(scan.data, work.bytes, work.ends)) return false;
  const int64_t mcus = int64_t{across} * down, interval = scan.restart_interval ? scan.restart_interval : mcus;
  if (static_cast<int64_t>(work.ends.size()) != (mcus + interval - 1) / interval) return false;

  // Upsampling looks two pixels beyond the region.
  const int column0 = std::max(region.x - 2, 0) / (8 * h_max), row0 = std::max(region.y - 2, 0) / (8 * v_max);
  const int column1 = divided_up(std::min(region.x + region.width + 2, scan.width), 8 * h_max);
  const int row1 = divided_up(std::min(region.y + region.height + 2, scan.height), 8 * v_max);

  alignas(64) int16_t block[64];
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
            if (wanted) std::memset(block, 0, sizeof block);
            const int last = read_block(in, work.dc[c], work.ac[c], last_dc[c], block);
            if (last < 0 || in.position() > work.bytes.data() + work.ends[segment]) return false;
            if (wanted)
              inverse_dct(block, scan.component[c].quant, last, plane.row(8 * (my * v + by)) + 8 * (mx * h + bx),
                          plane.stride);
          }
      }
    }
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
