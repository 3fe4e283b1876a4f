// int8 activations without VNNI: codes and activations widened to 16 bits, pairs of products added to each int32.
#pragma once
#include "simd/vec_avx2.h"

#include "mm/packed_mm_vector.h"
#include "mm/units.h"
#include "mm/x_int8.h"

namespace {

template <class Format, bool kByWord = false>
struct Int8Avx2 : Avx2, Units<Int256, Format, kByWord> {
  using Of = Units<Int256, Format, kByWord>;
  // Not __m256i: GCC 12 keeps arrays of that in memory, with a copy for every use.
  using Sum = __v8si;
  using Raw = typename Of::Words;
  using Weight = __m256i;
  using X = uint32_t;  // two int16
  static constexpr bool kInt8 = true, kScaleLast = false;
  static constexpr float kMid = Format::kMid, kOffset = 0;
  static constexpr int kStep = 2, kTileRows = 6, kFusedTile = 4, kFusedRows = 1 << 30;

  static Sum zero() { return Sum{}; }
  static Sum start(int32_t value) { return (Sum)_mm256_set1_epi32(value); }
  static Vec to_float(Sum sum) { return _mm256_cvtepi32_ps((__m256i)sum); }
  static Sum add(Sum a, Sum b) { return a + b; }
  using Avx2::add;
  static Raw load_raw(const uint8_t* stream, int64_t unit) { return Of::load_unit(stream, unit); }
  static Weight load_weight(const float* data) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data)); }
  static void store_weight(float* data, Weight weight) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(data), weight);
  }
  static Sum dot(Sum sum, Weight weight, const X* x) {
    return sum + (Sum)_mm256_madd_epi16(weight, _mm256_set1_epi32(static_cast<int>(*x)));
  }
  static const X* words(const int8_t* codes, int64_t steps, X* memory) {
    return int8_pairs_of_x<Format>(codes, steps, memory);
  }

  // Shifting a word's 16-bit halves leaves pairs of k in the low nibbles; of bytes, the even ones are k = 0,2 and the
  // odd ones k = 1,3.
  static Weight decode(const Raw& raw, int pair) {
    if constexpr (Format::kBits == 8)
      return pair ? _mm256_srli_epi16(Of::word(raw, 0), 8) : _mm256_and_si256(Of::word(raw, 0), _mm256_set1_epi16(255));
    else if constexpr (Of::kUpper)
      return Of::halves(raw, pair / 4, pair % 4);
    else
      return _mm256_and_si256(_mm256_srli_epi16(Of::word(raw, pair / 4), 4 * (pair % 4)), _mm256_set1_epi16(15));
  }
};

template <class Format>
void run_int8_avx2(const PackedMm& p) {
  run_vector_mm<Int8Avx2, Format>(p);
}

}  // namespace
