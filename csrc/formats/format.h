// What a weight is. A format is a struct of constants in formats/<format>.h, listed in formats/formats.inc; plans,
// packers, the reference and the checks of operands take everything else from here.
//
//   kName      as ops, Python and file names have it
//   kBits      of a code, 1 to 8
//   kFlip      what a plain code is xor-ed with to become the packed one: packed codes are unsigned
//   kMid       affine formats: the code that stands for 0 where no zero point is stored
//   kGrouped   whether k comes in groups with a scale each; else a row has one scale, for its whole sum
//   kFp8       whether codes are floats of 8 bits: then Fp8 says which (formats/fp8_code.h), and kMid is 0
//   kTable     whether codes, of up to 6 bits, stand for a table of values: then kMid is 0
//   value(c)   what packed code c stands for, before scales: c itself for affine formats, (value(c) - zero) * scale
//
// Plain, what a checkpoint holds, is one rule for all: code k of a row is the bits [k * kBits, (k + 1) * kBits) of the
// row, counted from the lowest bit of its first byte, and a row is padded to whole bytes. So 8 bits are a byte a code,
// and of 4 bits the low nibble is the even k. Groups begin and end at multiples of 8 columns: at whole bytes.
//
// Packed, what the CPU's kernels read, is [ceil(n / 16)][ceil(k / kUnitK)][kUnitBytes]: units of sixteen rows by kUnitK
// columns. A unit is made of words: sixteen 32-bit lanes, lane i = row i.
//
//   8 bits   a word is a unit of 4 columns, byte j of a lane is k = j
//   4 bits   a word is a unit of 8 columns, in nibbles: `nibble_shift` says which
//   others   the bits of a code are split into planes of 4, 2 and 1 bits, low bits first: 3 = 2 + 1, 5 = 4 + 1. A word
//            of the plane of two bits holds eight columns in the low halves of its nibbles and the next eight in the
//            upper ones, a word of the plane of one bit four times eight. So one shift and one mask make any plane's
//            share of the same word of nibbles, from where on all formats of up to 4 bits are alike. Of more bits the
//            plane of four is words of nibbles as it is, and the planes above make others (mm/units.h joins the two).
//
//              3 bits, unit of 32 columns, 192 bytes:   | two bits, k 0..15 | two bits, k 16..31 | one bit, k 0..31 |
//              nibbles of k 8j .. 8j + 7 = (word[j / 2] >> 2 (j % 2) & 0x33333333) | (word[2] >> j & 0x11111111) << 2
#pragma once
#include <cstdint>

#include "formats/packed.h"

namespace aoq {
namespace {  // a copy in each file: ISA files are sealed

// How far right the code of column k (0..7) of a word of nibbles has to be shifted to come to the lane's low nibble.
//
//   bits of a lane, high to low, name k:
//     31                          15                           0
//     |  7  |  5  |  3  |  1  |   |  6  |  4  |  2  |  0  |
//     '---- odd k, 16 bits ---'   '--- even k, 16 bits ---'
//
//   so that shifting 16-bit words right by 4j leaves codes k = 2j, 2j+1 in the low nibbles of a lane's two words: a
//   16-bit table look-up then gives the bf16 pairs of vdpbf16ps and AMX. Shifting 32-bit lanes by 4p gives one k for
//   fp32. And bytes & 15 gives k = 0,4,1,5 while bytes >> 4 gives 2,6,3,7: the quads of vpdpbusd and AMX int8.
constexpr int nibble_shift(int k) { return 4 * (k / 2) + 16 * (k % 2); }

constexpr int64_t kNibblesK = 8;  // columns of a word of nibbles

// The planes of codes of kBits, and where they lie in a unit.
template <int kBits>
struct Planes {
  static_assert(kBits >= 1 && kBits <= 8);
  static constexpr bool kBytes = kBits == 8;  // a byte a code: a plane of its own, without nibbles
  static constexpr int kLeast = kBytes ? 8 : kBits % 2 ? 1 : kBits % 4 ? 2 : 4;  // bits of the narrowest plane
  static constexpr int kUnitK = 32 / kLeast;                                     // columns whose planes are whole words
  static constexpr int kWords = kBits / kLeast;                                  // of a unit: kUnitK * kBits / 32
  static constexpr int64_t kUnitBytes = kWords * aoq::kUnitBytes;
  static constexpr int kPhases = kBytes ? 1 : 4 / kLeast;  // words of nibbles that a unit makes

  // Where in a unit some bits of a code of row 0 are: which word, how far to shift its lane, which bits of the code.
  struct Part {
    int word, shift, bits, low;
  };
  static constexpr int kParts = kBytes ? 1 : (kBits & 1) + (kBits >> 1 & 1) + (kBits >> 2 & 1);  // of a code

  // Part `index` of the code of column k of a unit.
  static constexpr Part part_of(int k, int index) {
    if (kBytes) return {0, 8 * k, 8, 0};
    int word = 0, low = 0;
    for (int bits = 4; bits; bits /= 2) {
      if (!(kBits & bits)) continue;
      const int columns = 32 / bits, in_word = k % columns;
      if (index-- == 0) return {word + k / columns, nibble_shift(in_word % 8) + bits * (in_word / 8), bits, low};
      word += kUnitK / columns;
      low += bits;
    }
    return {};
  }

  struct Table {
    Part part[kUnitK][kParts] = {};
    constexpr Table() {
      for (int k = 0; k < kUnitK; ++k)
        for (int index = 0; index < kParts; ++index) part[k][index] = part_of(k, index);
    }
  };
  static constexpr Table kTable{};
};

// Reads the code of (row, k) of a unit, and adds one to a unit of zeros.
template <int kBits>
constexpr int code_at(const uint8_t* unit, int row, int k) {
  int code = 0;
  for (const auto& part : Planes<kBits>::kTable.part[k]) {
    const uint8_t byte = unit[part.word * kUnitBytes + row * 4 + part.shift / 8];
    code |= (byte >> part.shift % 8 & ((1 << part.bits) - 1)) << part.low;
  }
  return code;
}
template <int kBits>
constexpr void add_code(uint8_t* unit, int row, int k, int code) {
  for (const auto& part : Planes<kBits>::kTable.part[k]) {
    uint8_t& byte = unit[part.word * kUnitBytes + row * 4 + part.shift / 8];
    byte = static_cast<uint8_t>(byte | (code >> part.low & ((1 << part.bits) - 1)) << part.shift % 8);
  }
}

// Bytes of a plain row of k codes.
template <int kBits>
constexpr int64_t plain_bytes(int64_t k) {
  return ceil_div(k * kBits, 8);
}
// Code k of a plain row.
template <int kBits>
constexpr int plain_code(const uint8_t* row, int64_t k) {
  const int64_t bit = k * kBits;
  int code = row[bit / 8] >> bit % 8;
  if (bit % 8 + kBits > 8) code |= row[bit / 8 + 1] << (8 - bit % 8);
  return code & ((1 << kBits) - 1);
}
// Adds code k to a plain row of zeros.
template <int kBits>
constexpr void add_plain_code(uint8_t* row, int64_t k, int code) {
  const int64_t bit = k * kBits;
  row[bit / 8] = static_cast<uint8_t>(row[bit / 8] | code << bit % 8);
  if (bit % 8 + kBits > 8) row[bit / 8 + 1] = static_cast<uint8_t>(row[bit / 8 + 1] | code >> (8 - bit % 8));
}

// Every bit of a unit is one bit of one code: each code written alone is read back, and leaves the others 0.
template <int kBits>
constexpr bool planes_are_consistent() {
  using P = Planes<kBits>;
  uint8_t unit[P::kUnitBytes] = {};
  for (int k = 0; k < P::kUnitK; ++k) add_code<kBits>(unit, k % 16, k, (37 * k + 11) % (1 << kBits));
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < P::kUnitK; ++k)
      if (code_at<kBits>(unit, row, k) != (row == k % 16 ? (37 * k + 11) % (1 << kBits) : 0)) return false;
  for (int k = 0; k < P::kUnitK; ++k)
    for (int row = 0; row < 16; ++row) add_code<kBits>(unit, row, k, (1 << kBits) - 1);
  for (const uint8_t byte : unit)
    if (byte != 255) return false;
  return true;
}
static_assert(planes_are_consistent<1>() && planes_are_consistent<2>() && planes_are_consistent<3>() &&
              planes_are_consistent<4>() && planes_are_consistent<5>() && planes_are_consistent<6>() &&
              planes_are_consistent<7>() && planes_are_consistent<8>());

// Of formats that quantize linearly: what their codes stand for is the codes.
template <int kBits_>
struct Affine {
  static constexpr int kBits = kBits_, kFlip = 0, kMid = 1 << (kBits_ - 1);
  static constexpr bool kGrouped = true, kFp8 = false, kTable = false;
  static constexpr float value(int code) { return static_cast<float>(code); }
};

// Floats of a sign, kExponent bits and kMantissa bits, without infinities and NaN: fp4, fp5 and fp6.
template <int kExponent_, int kMantissa_>
struct SmallFloat {
  static constexpr int kExponent = kExponent_, kMantissa = kMantissa_, kBits = 1 + kExponent + kMantissa;
  static constexpr int kBias = (1 << (kExponent - 1)) - 1, kFlip = 0, kMid = 0;
  static constexpr bool kGrouped = true, kFp8 = false, kTable = true;
  static constexpr float value(int code) {
    const int exponent = code >> kMantissa & ((1 << kExponent) - 1), mantissa = code & ((1 << kMantissa) - 1);
    float value = static_cast<float>(exponent ? mantissa + (1 << kMantissa) : mantissa);
    for (int i = exponent ? exponent : 1; i < kBias + kMantissa; ++i) value /= 2;
    for (int i = kBias + kMantissa; i < exponent; ++i) value *= 2;
    return code >> (kBits - 1) ? -value : value;
  }
};

// What all codes stand for once kMid is taken off, and their bf16 bits, exact but for tables of other values: look-up
// tables, of at least sixteen.
template <class Format>
struct Values {
  static constexpr int kCount = 1 << (Format::kBits < 4 ? 4 : Format::kBits);
  alignas(64) float f32[kCount] = {};
  alignas(64) uint16_t bf16[kCount] = {};
  constexpr Values() {
    for (int code = 0; code < (1 << Format::kBits); ++code) {
      f32[code] = Format::value(code) - Format::kMid;
      uint32_t bits = 0;  // nvcc stumbles over a const one
      bits = __builtin_bit_cast(uint32_t, f32[code]);
      bf16[code] = static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);  // to the nearest, where not exact
    }
  }
};
template <class Format>
constexpr Values<Format> kValues{};

}  // namespace
}  // namespace aoq
