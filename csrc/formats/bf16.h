// Weights to bf16 by AVX-512: included by *_avx512bf16.cpp and *_amx.cpp.
#pragma once
#include "simd/vec_avx512.h"

#include "formats/int8.h"

namespace {

// bf16 bits of what sixteen codes stand for, for vpermw, whose five index bits see them twice.
template <class Format>
inline __m512i bf16_table() {
  return _mm512_broadcast_i64x4(_mm256_load_si256(reinterpret_cast<const __m256i*>(aoq::kValues<Format>.bf16)));
}

// The bf16 bits of what codes of five to seven bits stand for, each in the low byte of a half of a lane.
template <class Format>
inline __m512i bf16_pairs(__m512i codes) {
  const auto table = [](int first) { return _mm512_load_si512(aoq::kValues<Format>.bf16 + first); };
  if constexpr (Format::kBits == 5) {
    return _mm512_permutexvar_epi16(codes, table(0));
  } else {
    const __m512i below_64 = _mm512_permutex2var_epi16(table(0), codes, table(32));
    if constexpr (Format::kBits == 6) {
      return below_64;
    } else {
      const __m512i from_64 = _mm512_permutex2var_epi16(table(64), codes, table(96));
      return _mm512_mask_mov_epi16(below_64, _mm512_test_epi16_mask(codes, _mm512_set1_epi16(64)), from_64);
    }
  }
}

// Codes 2 pair and 2 pair + 1 of each row of a unit, as bf16 pairs in the row's lane. 0x4b000000 | byte is the float
// 2^23 + byte; what a subtraction leaves has at most eight significant bits, so a float's upper half is all of it.
inline __m512i int8_pairs(__m512i unit, int pair) {
  const __m512i magic = _mm512_set1_epi32(0x4b000000), low = _mm512_set1_epi32(0xff);
  const __m512 offset = _mm512_set1_ps(8388608 + aoq::Int8::kMid);
  auto floats = [&](unsigned k) {
    const __m512i bits = _mm512_ternarylogic_epi32(_mm512_srli_epi32(unit, 8 * k), low, magic, 0xea);  // a & b | c
    return _mm512_castps_si512(_mm512_sub_ps(_mm512_castsi512_ps(bits), offset));
  };
  const unsigned first = 2 * static_cast<unsigned>(pair);
  return _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(floats(first), 16), floats(first + 1));
}

}  // namespace
