// How an engine reads the packed codes of a format (formats/format.h): as vectors of 32-bit lanes that hold eight codes
// in nibbles, or four in bytes, whatever planes they are stored in. From there on all formats are decoded alike. Codes
// of five to seven bits are two words of nibbles, whose columns are the same: their low bits, and what is above.
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
  static constexpr bool kUpper = kBits > 4 && kBits < 8;  // codes have bits above a nibble

  // What the plans take at a time: columns, words of nibbles (or one of bytes), and bytes from one to the next.
  static constexpr int kUnitWords = kByWord ? 1 : Planes::kPhases;
  static constexpr int kUnitK = Planes::kUnitK / Planes::kPhases * kUnitWords;
  static constexpr int64_t kUnitBytes = Planes::kUnitBytes / Planes::kPhases * kUnitWords;

  // Of all columns of sixteen rows.
  static constexpr int64_t block_bytes(int64_t k) { return aoq::ceil_div(k, Planes::kUnitK) * Planes::kUnitBytes; }

  // What is loaded of a unit: its words; or of a word of nibbles that, and the word above it if there is one.
  static constexpr int kLoads = kByWord ? 1 + kUpper : Planes::kWords;
  struct Words {
    Int word[kLoads];
  };

  static constexpr Words load_unit(const uint8_t* stream, int64_t unit) {
    Words words{};
    if constexpr (kByWord && Planes::kPhases > 1) {
      const uint8_t* const whole = stream + unit / Planes::kPhases * Planes::kUnitBytes;
      const auto load = [&](int i) { return Ints::load(whole + i * aoq::kUnitBytes); };
      words.word[0] = nibbles(load, static_cast<int>(unit % Planes::kPhases));
      if constexpr (kUpper) words.word[1] = upper_nibbles(load, static_cast<int>(unit % Planes::kPhases));
    } else {
#pragma GCC unroll 8
      for (int i = 0; i < kLoads; ++i) words.word[i] = Ints::load(stream + unit * kUnitBytes + i * aoq::kUnitBytes);
    }
    return words;
  }

  // Word `index` of nibbles of a unit, or its word of bytes.
  static constexpr Int word(const Words& words, int index) {
    if constexpr (kByWord)
      return words.word[0];
    else
      return nibbles([&](int i) { return words.word[i]; }, index);
  }

  // What the codes of that word have above their nibbles, in nibbles.
  static constexpr Int upper(const Words& words, int index) {
    if constexpr (kByWord)
      return words.word[1];
    else
      return upper_nibbles([&](int i) { return words.word[i]; }, index);
  }

  // Four of its codes in bytes: columns 0, 4, 1, 5 of the word of nibbles, or with `odd` 2, 6, 3, 7.
  static constexpr Int bytes(const Words& words, int index, bool odd) {
    const Int all = word(words, index), low = Ints::masked(odd ? Ints::right(all, 4) : all, 0x0f0f0f0f);
    if constexpr (kUpper) {
      const Int above = upper(words, index);
      return Ints::either(low, Ints::masked(odd ? above : Ints::left(above, 4), 0xf0f0f0f0));
    } else {
      return low;
    }
  }

  // Two of its codes in halves of lanes: columns 2 pair and 2 pair + 1.
  static constexpr Int halves(const Words& words, int index, int pair) {
    return Ints::masked(Ints::right(bytes(words, index, pair % 2), 8 * (pair / 2)), 0x00ff00ff);
  }

  // One of its codes in each lane: column k.
  static constexpr Int lanes(const Words& words, int index, int k) {
    return Ints::masked(Ints::right(bytes(words, index, k / 2 % 2), 8 * (k % 2 * 2 + k / 4)), 0xff);
  }

 private:
  // Words of the planes before that of `bits`.
  static constexpr int words_before(int bits) {
    const int of_four = bits < 4 && kBits & 4 ? 4 : 0, of_two = bits < 2 && kBits & 2 ? 2 : 0;
    return Planes::kUnitK * (of_four + of_two) / 32;
  }

  // A plane's share of the nibbles of word `index`, at bit `low` of each. word_of(i): word i of the unit.
  template <int bits, class WordOf>
  static constexpr Int plane(WordOf word_of, int index, int low) {
    constexpr int kShared = 4 / bits;  // words of nibbles that a word of the plane holds
    const Int from = word_of(words_before(bits) + index / kShared);
    const int right = bits * (index % kShared) - low;
    return Ints::masked(right >= 0 ? Ints::right(from, right) : Ints::left(from, -right), nibble_mask(bits, low));
  }

  template <class WordOf>
  static constexpr Int nibbles(WordOf word_of, int index) {
    if constexpr (kBits >= 4)
      return word_of(index);  // the plane of four bits comes first; of bytes, and of four bits alone, there is one word
    else
      return below_four(word_of, index);
  }

  template <class WordOf>
  static constexpr Int upper_nibbles(WordOf word_of, int index) {
    return below_four(word_of, index);
  }

  // The planes of two bits and of one, together.
  template <class WordOf>
  static constexpr Int below_four(WordOf word_of, int index) {
    if constexpr ((kBits & 3) == 3)
      return Ints::either(plane<2>(word_of, index, 0), plane<1>(word_of, index, 2));
    else
      return plane<kBits & 3>(word_of, index, 0);
  }
};

}  // namespace
