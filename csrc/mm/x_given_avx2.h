// Activations in fp32 on AVX2, one k a step.
#pragma once
#include "simd/vec_avx2.h"

#include "formats/fp8_weight.h"
#include "mm/packed_mm_vector.h"
#include "mm/units.h"

namespace {

template <class Format, bool kByWord = false>
struct FloatAvx2 : Avx2, Units<Int256, Format, kByWord> {
  using Of = Units<Int256, Format, kByWord>;
  using Sum = Vec;
  using Raw = typename Of::Words;
  using Weight = __m256;
  using X = float;
  static constexpr bool kInt8 = false, kScaleLast = !Format::kGrouped;
  static constexpr bool kNibbles = Format::kBits <= 4 && !Format::kTable;
  static constexpr float kMid = Format::kMid, kOffset = kMid;  // codes are decoded around it
  static constexpr int kStep = 1, kTileRows = 6, kFusedTile = 4, kFusedRows = kFusedTile;

  static constexpr bool kPairs = kNibbles;
  static Raw load_raw(const uint8_t* stream, int64_t unit) { return Of::load_unit(stream, unit); }
  static Weight load_weight(const float* data) { return _mm256_loadu_ps(data); }
  static void store_weight(float* data, Weight weight) { _mm256_storeu_ps(data, weight); }
  static Vec dot(Vec sum, Weight weight, const X* x) { return _mm256_fmadd_ps(weight, _mm256_broadcast_ss(x), sum); }
  static Vec product(Weight weight, const X* x) { return _mm256_mul_ps(weight, _mm256_broadcast_ss(x)); }
  static const X* words(const void* x, aoq::Dtype dtype, int64_t k, int64_t steps, X* memory) {
    if (dtype == aoq::Dtype::f32 && k == steps) return static_cast<const X*>(x);
    widen_row<Avx2>(x, dtype, k, steps, memory);
    return memory;
  }

  static Weight decode(const Raw& raw, int k) {
    if constexpr (Format::kBits == 8) {
      const __m256i byte = _mm256_srli_epi32(Of::word(raw, 0), 8 * k);
      if constexpr (Format::kFp8)
        return fp8_value(byte);
      else
        return int8_value(byte);
    } else if constexpr (Format::kTable) {
      return table_value(Of::lanes(raw, k / 8, k % 8));
    } else if constexpr (Of::kUpper) {
      return value(Of::lanes(raw, k / 8, k % 8));
    } else {
      // A code in the upper four bits of the mantissa of the bf16 16.0 makes it 16 + code: one shift, mask and exponent
      // for the pair of columns k and k + 1 of all lanes, which are then floats when their other half is cleared.
      constexpr int kPair = 16;  // bits of a lane from an even column to the odd one
      static_assert(aoq::nibble_shift(1) == kPair && aoq::nibble_shift(6) == 12, "columns come in pairs");
      const int low = aoq::nibble_shift(k % 8 / 2 * 2);
      const __m256i word = Of::word(raw, k / 8);
      const __m256i moved = low < 3 ? _mm256_slli_epi32(word, 3 - low) : _mm256_srli_epi32(word, low - 3);
      const __m256i codes = _mm256_and_si256(moved, _mm256_set1_epi32(0x00780078));
      __m256i pair = _mm256_or_si256(codes, _mm256_set1_epi32(0x41804180));
      asm("" : "+x"(pair));  // or GCC masks the two columns apart, one instruction more
      if (k % 2) return around_mid(_mm256_and_si256(pair, _mm256_set1_epi32(static_cast<int>(0xffff0000))));
      // Up by two bytes: Zen 2 shuffles twice a cycle and shifts once.
      const __m256i up = _mm256_setr_epi32(0x01008080, 0x05048080, 0x09088080, 0x0d0c8080, 0x01008080, 0x05048080,
                                           0x09088080, 0x0d0c8080);
      return around_mid(_mm256_shuffle_epi8(pair, up));
    }
  }
  static Weight decode_scaled(const Raw& raw, int k, Vec scale, Vec shift) { return fma(decode(raw, k), scale, shift); }

 private:
  // A look-up of eight values for each eight codes, of which the upper bits of a code choose one: bit 3 as the sign of
  // a lane, which is what a blend goes by, and so on.
  static Weight table_value(__m256i code) { return table_value<Format::kBits>(code, 0); }
  template <int kBits>
  static Weight table_value(__m256i code, int first) {
    if constexpr (kBits <= 3) {
      return _mm256_permutevar8x32_ps(_mm256_load_ps(aoq::kValues<Format>.f32 + first), code);
    } else {
      const __m256 low = table_value<kBits - 1>(code, first);
      const __m256 high = table_value<kBits - 1>(code, first + (1 << (kBits - 1)));
      return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(code, 32 - kBits)));
    }
  }

  // Exact. Taken off once a group, as (16 + zero) times the sum of x, it would leave sums of zeros a rounding from
  // zero.
  static Weight around_mid(__m256i code) { return _mm256_sub_ps(_mm256_castsi256_ps(code), _mm256_set1_ps(16 + kMid)); }
  // 0x4b000000 | code is the float 2^23 + code: one subtraction leaves the code.
  static Weight int8_value(__m256i byte) { return value(_mm256_and_si256(byte, _mm256_set1_epi32(0xff))); }
  static Weight value(__m256i code) {
    const __m256i bits = _mm256_or_si256(code, _mm256_set1_epi32(0x4b000000));
    return _mm256_sub_ps(_mm256_castsi256_ps(bits), _mm256_set1_ps(8388608 + kMid));
  }

  // A code's bits, moved to where a float has them; subnormal codes are whole numbers of the smallest.
  static Weight fp8_value(__m256i byte) {
    using Fp8 = typename Format::Fp8;
    const __m256i magnitude = _mm256_and_si256(byte, _mm256_set1_epi32(0x7f));
    constexpr float kLeast = Fp8::kLeastNormal / (1 << Fp8::kMantissa);
    const __m256i mantissa = _mm256_slli_epi32(magnitude, 23 - Fp8::kMantissa);
    __m256i bits = _mm256_add_epi32(mantissa, _mm256_set1_epi32((127 - Fp8::kBias) << 23));
    const __m256i subnormal = _mm256_cmpgt_epi32(_mm256_set1_epi32(1 << Fp8::kMantissa), magnitude);
    const __m256 small = _mm256_mul_ps(_mm256_cvtepi32_ps(magnitude), _mm256_set1_ps(kLeast));
    bits = _mm256_blendv_epi8(bits, _mm256_castps_si256(small), subnormal);
    // NaN, and e5m2's infinity: all ones in the exponent, and the code's mantissa.
    const __m256i special = _mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(kLastFp8<Fp8>));
    bits = _mm256_blendv_epi8(bits, _mm256_or_si256(mantissa, _mm256_set1_epi32(0x7f800000)), special);
    const __m256i sign =
        _mm256_andnot_si256(_mm256_slli_epi32(byte, 24), _mm256_set1_epi32(static_cast<int>(0x80000000)));
    return _mm256_castsi256_ps(_mm256_or_si256(bits, sign));
  }
};

template <class Format>
void run_given_avx2(const PackedMm& p) {
  run_vector_mm<FloatAvx2, Format>(p);
}

}  // namespace
