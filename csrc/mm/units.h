// How an engine reads the packed codes of a format (formats/format.h): as vectors of 32-bit lanes that hold eight codes
// in nibbles, or four in bytes, whatever planes they are stored in. From there on all formats are decoded alike.
//
// Ints, the integers of a vector register: Type, load(bytes), and of 32-bit lanes right(a, count), left(a, count),
// masked(a, mask) and either(a, b).
#pragma once
#include "formats/format.h"

namespace {

// Of each nibble of a 32-bit lane, bits [low, low + bits).
constexpr uint32_t nibble_mask(int bits, int low) {
  return 0x11111111u * static_cast<uint32_t>(((1 << bits) - 1) << low);
}

// kByWord: a word of nibbles at a time, wherever in a unit it lies, for groups that are not whole units. Else a whole
// unit at a time, so that shifts and words are known when it is compiled.
template <class Ints, class Format, bool kByWord = false>
struct Units {
  using Int = typename Ints::Type;
  using Planes = aoq::Planes<Format::kBits>;
  static constexpr int kBits = Format::kBits;
  static_assert(kBits <= 4 || kBits == 8, "nibbles hold the codes");

  // What the plans take at a time: columns, words of nibbles (or one of bytes), and bytes from one to the next.
  static constexpr int kUnitWords = kByWord ? 1 : Planes::kPhases;
  static constexpr int kUnitK = Planes::kUnitK / Planes::kPhases * kUnitWords;
  static constexpr int64_t kUnitBytes = Planes::kUnitBytes / Planes::kPhases * kUnitWords;

  // Of all columns of sixteen rows.
  static constexpr int64_t block_bytes(int64_t k) { return aoq::ceil_div(k, Planes::kUnitK) * Planes::kUnitBytes; }

  // What is loaded of a unit: its words, or the one of nibbles.
  static constexpr int kLoads = kByWord ? 1 : Planes::kWords;
  struct Words {
    Int word[kLoads];
  };

  static Words load_unit(const uint8_t* stream, int64_t unit) {
    Words words;
    if constexpr (kByWord && Planes::kPhases > 1) {
      const uint8_t* const whole = stream + unit / Planes::kPhases * Planes::kUnitBytes;
      words.word[0] = nibbles([&](int i) { return Ints::load(whole + i * aoq::kUnitBytes); },
                              static_cast<int>(unit % Planes::kPhases));
    } else {
#pragma GCC unroll 8
      for (int i = 0; i < kLoads; ++i) words.word[i] = Ints::load(stream + unit * kUnitBytes + i * aoq::kUnitBytes);
    }
    return words;
  }

  // Word `index` of nibbles of a unit, or its word of bytes.
  static Int word(const Words& words, int index) {
    if constexpr (kByWord)
      return words.word[0];
    else
      return nibbles([&](int i) { return words.word[i]; }, index);
  }

 private:
  // Words of the planes before that of `bits`.
  static constexpr int words_before(int bits) { return bits == 1 && kBits & 2 ? Planes::kUnitK * 2 / 32 : 0; }

  // A plane's share of the nibbles of word `index`, at bit `low` of each. word_of(i): word i of the unit.
  template <int bits, class WordOf>
  static Int plane(WordOf word_of, int index, int low) {
    constexpr int kShared = 4 / bits;  // words of nibbles that a word of the plane holds
    const Int from = word_of(words_before(bits) + index / kShared);
    const int right = bits * (index % kShared) - low;
    return Ints::masked(right >= 0 ? Ints::right(from, right) : Ints::left(from, -right), nibble_mask(bits, low));
  }

  template <class WordOf>
  static Int nibbles(WordOf word_of, int index) {
    if constexpr (kBits == 4 || kBits == 8)
      return word_of(0);
    else if constexpr (kBits == 3)
      return Ints::either(plane<2>(word_of, index, 0), plane<1>(word_of, index, 2));
    else
      return plane<kBits>(word_of, index, 0);
  }
};

}  // namespace
