// fp8 weights to bf16 by AVX512_VBMI: included by *_avx512vbmi.cpp and *_amx.cpp.
#pragma once
#include "simd/vec_avx512.h"

#include "formats/fp8_weight.h"

namespace {

// The lower or upper bytes of formats/fp8_weight.h's table: 128 entries are what a look-up of bytes takes.
template <class Format>
struct Fp8Bytes {
  alignas(64) uint8_t low[128], high[128];
  constexpr Fp8Bytes() : low{}, high{} {
    for (int magnitude = 0; magnitude < 128; ++magnitude) {
      low[magnitude] = fp8_to_bf16<Format>(magnitude) & 0xff;
      high[magnitude] = fp8_to_bf16<Format>(magnitude) >> 8;
    }
  }
};
template <class Format>
constexpr Fp8Bytes<Format> kFp8Bytes{};

// The lower and upper bytes of a unit's 64 weights as bf16, where their codes were.
struct Fp8Unit {
  __m512i low, high;
};

template <class Format>
inline Fp8Unit fp8_unit(__m512i unit) {
  auto look_up = [&](const uint8_t* table) {
    return _mm512_permutex2var_epi8(_mm512_load_si512(table), unit, _mm512_load_si512(table + 64));
  };
  // magnitude | (~flipped sign & 0x80)
  const __m512i signs = _mm512_set1_epi8(static_cast<char>(kFp8SignFlip));
  return {look_up(kFp8Bytes<Format>.low),
          _mm512_ternarylogic_epi32(look_up(kFp8Bytes<Format>.high), unit, signs, 0xf2)};
}

// Codes 2 pair and 2 pair + 1 of each row of a unit, as bf16 pairs in the row's lane.
inline __m512i fp8_pairs(Fp8Unit unit, int pair) {
  // Bytes 2 pair and 2 pair + 1 of each lane, of low (from 0) and high (from 64).
  const __m512i first =
      _mm512_set_epi32(0x7d3d7c3c, 0x79397838, 0x75357434, 0x71317030, 0x6d2d6c2c, 0x69296828, 0x65256424, 0x61216020,
                       0x5d1d5c1c, 0x59195818, 0x55155414, 0x51115010, 0x4d0d4c0c, 0x49094808, 0x45054404, 0x41014000);
  const __m512i bytes = _mm512_add_epi8(first, _mm512_set1_epi8(pair ? 2 : 0));
  return _mm512_permutex2var_epi8(unit.low, bytes, unit.high);
}

}  // namespace
