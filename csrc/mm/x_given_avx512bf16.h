// bf16 activations on AVX512_BF16: vdpbf16ps multiplies pairs exactly and adds in fp32. Two k a step: codes become bf16
// pairs, which hold them exactly.
#pragma once
#include "simd/vec_avx512.h"

#include "formats/bf16.h"
#include "formats/fp8_bf16.h"
#include "mm/packed_mm_vector.h"
#include "mm/units.h"

namespace {

// What does not depend on how weights are decoded.
struct PairsAvx512Bf16 : Avx512 {
  using Sum = Vec;
  using Weight = __m512i;
  using X = uint32_t;  // a bf16 pair
  static constexpr bool kInt8 = false;
  static constexpr int kStep = 2, kTileRows = 12, kFusedTile = 8;

  static Weight load_weight(const float* data) { return _mm512_loadu_si512(data); }
  static void store_weight(float* data, Weight weight) { _mm512_storeu_si512(data, weight); }
  static Vec dot(Vec sum, Weight weight, const X* x) {
    return _mm512_dpbf16_ps(sum, (__m512bh)weight, (__m512bh)_mm512_set1_epi32(static_cast<int>(*x)));
  }

  static const X* words(const void* x, aoq::Dtype, int64_t k, int64_t steps, X* memory) {
    if (k == 2 * steps) return static_cast<const X*>(x);
    std::memcpy(memory, x, static_cast<size_t>(k) * 2);
    std::memset(reinterpret_cast<char*>(memory) + k * 2, 0, static_cast<size_t>(2 * steps - k) * 2);
    return memory;
  }

  // The low and the high halves of lanes, rounded to bf16 pairs.
  static Weight rounded(Vec low, Vec high) {
    const __m512i words = (__m512i)_mm512_cvtne2ps_pbh(high, low);
    const __m512i lanes = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(lanes, words);
  }
  // Bf16 pairs times a scale, plus a shift.
  static Weight scaled(Weight pairs, Vec scale, Vec shift) {
    const __m512 low = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    const __m512 high = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000))));
    return rounded(fma(low, scale, shift), fma(high, scale, shift));
  }
};

template <class Format, bool kByWord = false>
struct FloatAvx512Bf16 : PairsAvx512Bf16, Units<Int512, Format, kByWord> {
  using Of = Units<Int512, Format, kByWord>;
  using Raw = typename Of::Words;
  static constexpr bool kScaleLast = !Format::kGrouped;
  static constexpr float kMid = Format::kMid, kOffset = kMid;  // codes are decoded around it
  static constexpr int kFusedRows = Format::kBits <= 4 ? 192 : Format::kFp8 ? kFusedTile : 40;

  static Raw load_raw(const uint8_t* stream, int64_t unit) { return Of::load_unit(stream, unit); }

  static Weight decode(const Raw& raw, int pair) {
    if constexpr (Format::kFp8)
      return fp8_pairs<typename Format::Fp8>(Of::word(raw, 0), pair);
    else if constexpr (Format::kBits == 8)
      return int8_pairs(Of::word(raw, 0), pair);
    else if constexpr (Of::kUpper)
      return bf16_pairs<Format>(Of::halves(raw, pair / 4, pair % 4));
    else  // a 16-bit table look-up, whose five index bits see half a table twice
      return _mm512_permutexvar_epi16(_mm512_srli_epi16(Of::word(raw, pair / 4), static_cast<unsigned>(4 * (pair % 4))),
                                      bf16_table<Format>());
  }

  // In fp32, one look-up for each of the two words of a lane, then rounded to bf16 pairs. Of more than four bits there
  // is no look-up in fp32: what their pairs of bf16 hold is exact.
  static Weight decode_scaled(const Raw& raw, int pair, Vec scale, Vec shift) {
    if constexpr (Format::kBits > 4) {
      return scaled(decode(raw, pair), scale, shift);
    } else {
      auto look_up = [&](int bit) {
        const __m512i nibbles = _mm512_srli_epi32(Of::word(raw, pair / 4), static_cast<unsigned>(bit));
        return fma(_mm512_permutexvar_ps(nibbles, _mm512_load_ps(aoq::kValues<Format>.f32)), scale, shift);
      };
      const int low = 4 * (pair % 4);
      return rounded(look_up(low), look_up(low + 16));
    }
  }
};

template <class Format>
void run_given_avx512bf16(const PackedMm& p) {
  run_vector_mm<FloatAvx512Bf16, Format>(p);
}

}  // namespace
