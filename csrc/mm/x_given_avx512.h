// Activations in fp32 on AVX-512, one k a step.
#pragma once
#include "simd/vec_avx512.h"

#include "formats/fp8_weight.h"
#include "mm/packed_mm_vector.h"
#include "mm/units.h"

namespace {

template <class Format, bool kByWord = false>
struct FloatAvx512 : Avx512, Units<Int512, Format, kByWord> {
  using Of = Units<Int512, Format, kByWord>;
  using Sum = Vec;
  using Raw = typename Of::Words;
  using Weight = __m512;
  using X = float;
  static constexpr bool kInt8 = false, kScaleLast = !Format::kGrouped;
  static constexpr float kMid = Format::kMid, kOffset = kMid;  // codes are decoded around it
  static constexpr int kStep = 1, kTileRows = 12, kFusedTile = 10, kFusedRows = Format::kFp8 ? kFusedTile : 40;

  static Raw load_raw(const uint8_t* stream, int64_t unit) { return Of::load_unit(stream, unit); }
  static Weight load_weight(const float* data) { return _mm512_loadu_ps(data); }
  static void store_weight(float* data, Weight weight) { _mm512_storeu_ps(data, weight); }
  static Vec dot(Vec sum, Weight weight, const X* x) { return _mm512_fmadd_ps(weight, _mm512_set1_ps(*x), sum); }
  static const X* words(const void* x, aoq::Dtype dtype, int64_t k, int64_t steps, X* memory) {
    if (dtype == aoq::Dtype::f32 && k == steps) return static_cast<const X*>(x);
    widen_row<Avx512>(x, dtype, k, steps, memory);
    return memory;
  }

  static Weight decode(const Raw& raw, int k) {
    if constexpr (Format::kBits == 8) {
      const __m512i byte = _mm512_srli_epi32(Of::word(raw, 0), static_cast<unsigned>(8 * k));
      if constexpr (Format::kFp8)
        return fp8_value(byte);
      else
        return int8_value(byte);
    } else if constexpr (Of::kUpper && Format::kTable) {
      return table_value(Of::lanes(raw, k / 8, k % 8));
    } else if constexpr (Of::kUpper) {
      return int8_value(Of::lanes(raw, k / 8, k % 8));
    } else {
      // The permutation reads the low four bits of each lane.
      const __m512i nibble = _mm512_srli_epi32(Of::word(raw, k / 8), static_cast<unsigned>(aoq::nibble_shift(k % 8)));
      return _mm512_permutexvar_ps(nibble, _mm512_load_ps(aoq::kValues<Format>.f32));
    }
  }
  static Weight decode_scaled(const Raw& raw, int k, Vec scale, Vec shift) { return fma(decode(raw, k), scale, shift); }

 private:
  // Of five or six bits.
  static Weight table_value(__m512i code) {
    const auto table = [](int first) { return _mm512_load_ps(aoq::kValues<Format>.f32 + first); };
    const __m512 below_32 = _mm512_permutex2var_ps(table(0), code, table(16));
    if constexpr (Format::kBits == 5) {
      return below_32;
    } else {
      const __m512 from_32 = _mm512_permutex2var_ps(table(32), code, table(48));
      return _mm512_mask_mov_ps(below_32, _mm512_test_epi32_mask(code, _mm512_set1_epi32(32)), from_32);
    }
  }

  // 0x4b000000 | byte is the float 2^23 + byte: one subtraction leaves the code.
  static Weight int8_value(__m512i byte) {
    const __m512i magic = _mm512_set1_epi32(0x4b000000);
    const __m512i bits = _mm512_ternarylogic_epi32(byte, _mm512_set1_epi32(0xff), magic, 0xea);  // a & b | c
    return _mm512_sub_ps(_mm512_castsi512_ps(bits), _mm512_set1_ps(8388608 + kMid));
  }

  // A code's bits, moved to where a float has them; subnormal codes are whole numbers of the smallest.
  static Weight fp8_value(__m512i byte) {
    using Fp8 = typename Format::Fp8;
    const __m512i magnitude = _mm512_and_si512(byte, _mm512_set1_epi32(0x7f));
    constexpr float kLeast = Fp8::kLeastNormal / (1 << Fp8::kMantissa);
    __m512i bits = _mm512_add_epi32(_mm512_slli_epi32(magnitude, 23 - Fp8::kMantissa),
                                    _mm512_set1_epi32((127 - Fp8::kBias) << 23));
    const __mmask16 subnormal = _mm512_cmplt_epi32_mask(magnitude, _mm512_set1_epi32(1 << Fp8::kMantissa));
    const __m512 small = _mm512_mul_ps(_mm512_cvtepi32_ps(magnitude), _mm512_set1_ps(kLeast));
    bits = _mm512_mask_mov_epi32(bits, subnormal, _mm512_castps_si512(small));
    // NaN, and e5m2's infinity: all ones in the exponent, and the code's mantissa.
    const __mmask16 special = _mm512_cmpgt_epi32_mask(magnitude, _mm512_set1_epi32(kLastFp8<Fp8>));
    const __m512i mantissa = _mm512_slli_epi32(magnitude, 23 - Fp8::kMantissa);
    bits = _mm512_mask_or_epi32(bits, special, mantissa, _mm512_set1_epi32(0x7f800000));
    // bits | (~flipped sign & 0x80000000)
    return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(bits, _mm512_slli_epi32(byte, 24),
                                                         _mm512_set1_epi32(static_cast<int>(0x80000000)), 0xf2));
  }
};

template <class Format>
void run_given_avx512(const PackedMm& p) {
  run_vector_mm<FloatAvx512, Format>(p);
}

}  // namespace
