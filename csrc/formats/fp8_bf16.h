// fp8 weights to bf16 by AVX-512: included by *_avx512bf16.cpp and *_amx.cpp.
#pragma once
#include "simd/vec_avx512.h"

#include "formats/fp8_weight.h"

namespace {

// Codes 2 pair and 2 pair + 1 of each row of a unit, as bf16 pairs in the row's lane.
template <class Format>
inline __m512i fp8_pairs(__m512i unit, int pair) {
  const uint16_t* table = kFp8Table<Format>.bf16;
  auto entries = [&](int first) { return _mm512_load_si512(table + first); };
  // Bytes 2 pair, 2 pair + 1 of a lane to its two words; an index with the top bit set gives zero.
  const __m512i lanes = _mm512_set4_epi32(0x800d800c, 0x80098008, 0x80058004, 0x80018000);
  const __m512i bytes = _mm512_add_epi8(lanes, _mm512_set1_epi32(pair ? 0x00020002 : 0));
  const __m512i words = _mm512_shuffle_epi8(unit, bytes);
  const __m512i low = _mm512_permutex2var_epi16(entries(0), words, entries(32));
  const __m512i high = _mm512_permutex2var_epi16(entries(64), words, entries(96));
  const __m512i magnitude = _mm512_mask_mov_epi16(low, _mm512_test_epi16_mask(words, _mm512_set1_epi16(64)), high);
  // magnitude | (~flipped sign & 0x8000)
  return _mm512_ternarylogic_epi32(magnitude, _mm512_slli_epi16(words, 8), _mm512_set1_epi16(short(0x8000)), 0xf2);
}

}  // namespace
