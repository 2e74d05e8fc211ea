// Entropy decoding of baseline JPEG blocks: Huffman codes (T.81, annex F.2.2) looked up kPeek bits at a time, two
// symbols at once where they fit. Private to data/baseline_jpeg.cpp.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

#include "data/baseline_jpeg.h"

namespace csml::jpeg {

inline constexpr int kPeek = 11;         // bits of one table look-up
inline constexpr int kEnd = 128;         // added to a place: the block ends there
inline constexpr size_t kPadding = 512;  // more bytes than a block reads past the end: 64 symbols of at most 31 bits

/// Position in row order of the k-th coefficient; a run that passes the end, or kEnd, lands on the last one.
inline constexpr auto kNatural = [] {
  constexpr std::array<uint8_t, 64> zigzag = {0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,
                                              12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6,  7,  14, 21, 28,
                                              35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51,
                                              58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63};
  std::array<uint8_t, 256> natural{};
  for (size_t k = 0; k < natural.size(); ++k) natural[k] = zigzag[std::min<size_t>(k, 63)];
  return natural;
}();

/// The signed number in the highest `size` bits, 1 to 15 (T.81, figure F.12), without a branch.
inline int signed_number(uint64_t bits, int size) {
  const int number = static_cast<int>(bits >> (-size & 63));
  const int positive = static_cast<int>(static_cast<int64_t>(bits) >> 63);
  return number - (((1 << size) - 1) & ~positive);
}

struct HuffmanTable {
  /// What the next kPeek bits begin with: a code of `code` bits for a run of run - 1 zeros and a number of `size` bits,
  /// `first` bits together, 0 where the code is longer than kPeek. Where they also hold the symbol that follows a
  /// number, it is taken along, `all` bits for both: `second` at run2 places further, or the end of the block for run2
  /// = kEnd; else run2 = 0.
  struct Entry {
    uint8_t all, first, code, size, run, run2;
    int16_t second;
  };
  std::array<Entry, 1 << kPeek> entry;
  std::array<int, 18> end;     // [l]: first code of l bits that is none, or 0
  std::array<int, 18> offset;  // values[code + offset[l]]
  const uint8_t* values;

  /// False for a table that no encoder writes; libjpeg says what is wrong with it.
  bool build(const BaselineScan::Huffman& from, int largest_symbol) {
    if (!from.counts || !from.values) return false;
    values = from.values;
    entry.fill({});
    int code = 0, index = 0;
    for (int length = 1; length <= 16; ++length, code <<= 1) {
      offset[static_cast<size_t>(length)] = index - code;
      for (int i = 0; i < from.counts[length]; ++i, ++index, ++code) {
        // No code is all ones.
        if (index >= 256 || code + 1 >= 1 << length || from.values[index] > largest_symbol) return false;
        const int free = kPeek - length;
        if (free >= 0)
          std::fill_n(&entry[static_cast<size_t>(code) << free], size_t{1} << free, single(from.values[index], length));
      }
      end[static_cast<size_t>(length)] = code;
    }
    return true;
  }

  /// Takes along the second symbols of an AC table.
  void pair() {
    for (size_t bits = 0; bits < entry.size(); ++bits) {
      Entry& e = entry[bits];
      if (e.size == 0 || e.first >= kPeek) continue;
      const Entry& next = entry[bits << e.first & (entry.size() - 1)];
      if (next.first == 0 || e.first + next.first > kPeek) continue;
      if (next.size != 0) {
        e.run2 = next.run;
        e.second = static_cast<int16_t>(signed_number(uint64_t{bits} << (64 - kPeek + e.first + next.code), next.size));
      } else if (next.run == 1) {
        e.run2 = kEnd;
      } else {
        continue;
      }
      e.all = static_cast<uint8_t>(e.first + next.first);
    }
  }

  /// The entry of a code longer than kPeek; one without bits where there is no such code.
  Entry search(uint64_t bits) const {
    for (int length = kPeek + 1; length <= 16; ++length) {
      const int code = static_cast<int>(bits >> (64 - length));
      if (code < end[static_cast<size_t>(length)])
        return single(values[code + offset[static_cast<size_t>(length)]], length);
    }
    return {};
  }

 private:
  static Entry single(int symbol, int length) {
    const int size = symbol & 15;
    const int bits = length + size, run = (symbol >> 4) + 1;
    return {.all = static_cast<uint8_t>(bits),
            .first = static_cast<uint8_t>(bits),
            .code = static_cast<uint8_t>(length),
            .size = static_cast<uint8_t>(size),
            .run = static_cast<uint8_t>(run),
            .run2 = 0,
            .second = 0};
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
  inline const HuffmanTable::Entry& peek(const HuffmanTable& table) const { return table.entry[bits >> (64 - kPeek)]; }
  inline int number(const HuffmanTable::Entry& entry) const { return signed_number(bits << entry.code, entry.size); }
  /// Bytes touched by the bits that are used up.
  const uint8_t* position() const { return next - (count >> 3); }
};

/// Reads one block into zeros; the place of its last coefficient, or -1 for damage.
inline int read_block(BitReader& in, const HuffmanTable& dc, const HuffmanTable& ac, int& last_dc, int16_t* block) {
  in.refill();
  HuffmanTable::Entry entry = in.peek(dc);
  if (entry.first == 0 && (entry = dc.search(in.bits)).first == 0) return -1;
  if (entry.size != 0) last_dc += in.number(entry);
  in.drop(entry.first);
  block[0] = static_cast<int16_t>(last_dc);

  int k = 0;  // place of the last coefficient
  const auto put = [&](int place, int number) {
    block[kNatural[static_cast<size_t>(place)]] = static_cast<int16_t>(number);
  };
  // One look-up of an ordinary entry; false where something else is to be done.
  const auto coefficients = [&] {
    const HuffmanTable::Entry& e = in.peek(ac);
    if (e.size == 0) return false;
    const int place = k + e.run, number = in.number(e);
    if (place >= 63) {  // the next symbol is not this block's
      put(place, number);
      k = place;
      in.drop(e.first);
      return true;
    }
    k = place + e.run2;
    put(k, e.second);  // before the first, which it may share its place with
    put(place, number);
    in.drop(e.all);
    return true;
  };
  while (k < 63) {
    in.refill();  // enough for two look-ups
    if (coefficients() && (k >= 63 || coefficients())) continue;
    entry = in.peek(ac);
    if (entry.first == 0) {
      in.refill();
      if ((entry = ac.search(in.bits)).first == 0) return -1;
    }
    const int number = in.number(entry);
    in.drop(entry.first);
    if (entry.size != 0) {
      k += entry.run;
      put(k, number);
    } else if (entry.run == 1) {
      return k;
    } else if (entry.run == 16) {
      k += 16;
    } else {
      return -1;
    }
  }
  if (k >= kEnd) k -= kEnd;
  return k > 63 ? -1 : k;
}

}  // namespace csml::jpeg
