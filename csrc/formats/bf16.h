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
