// int8 activations without VNNI: codes and activations widened to 16 bits, pairs of products added to each int32.
#pragma once
#include "simd/vec_avx512.h"

#include "mm/packed_mm_vector.h"
#include "mm/units.h"
#include "mm/x_int8.h"

namespace {

template <class Format, bool kByWord = false>
struct Int8Avx512 : Avx512, Units<Int512, Format, kByWord> {
  using Of = Units<Int512, Format, kByWord>;
  // Not __m512i: GCC 12 keeps arrays of that in memory, with a copy for every use.
  using Sum = __v16si;
  using Raw = typename Of::Words;
  using Weight = __m512i;
  using X = uint32_t;  // two int16
  static constexpr bool kInt8 = true, kScaleLast = false;
  static constexpr float kMid = Format::kMid, kOffset = 0;
  static constexpr int kStep = 2, kTileRows = 12, kFusedTile = 8,
                       kFusedRows = Format::kBits <= 4 ? kFusedTile : kAllRows;

  static Sum zero() { return Sum{}; }
  static void make_start(float* sum, float times) { start_of_integers(sum, times); }
  static Sum start(const float* at) { return (Sum)_mm512_castps_si512(_mm512_set1_ps(*at)); }
  static Vec to_float(Sum sum) { return _mm512_cvtepi32_ps((__m512i)sum); }
  static Sum add(Sum a, Sum b) { return a + b; }
  using Avx512::add;
  static Raw load_raw(const uint8_t* stream, int64_t unit) { return Of::load_unit(stream, unit); }
  static Weight load_weight(const float* data) { return _mm512_loadu_si512(data); }
  static void store_weight(float* data, Weight weight) { _mm512_storeu_si512(data, weight); }
  static Sum dot(Sum sum, Weight weight, const X* x) {
    return sum + (Sum)_mm512_madd_epi16(weight, _mm512_set1_epi32(static_cast<int>(*x)));
  }
  static const X* words(const int8_t* codes, int64_t steps, X* memory) {
    return int8_pairs_of_x<Format>(codes, steps, memory);
  }

  // Shifting a word's 16-bit halves leaves pairs of k in the low nibbles; of bytes, the even ones are k = 0,2 and the
  // odd ones k = 1,3.
  static Weight decode(const Raw& raw, int pair) {
    if constexpr (Format::kBits == 8)
      return pair ? _mm512_srli_epi16(Of::word(raw, 0), 8) : _mm512_and_si512(Of::word(raw, 0), _mm512_set1_epi16(255));
    else if constexpr (Of::kUpper)
      return Of::halves(raw, pair / 4, pair % 4);
    else
      return _mm512_and_si512(_mm512_srli_epi16(Of::word(raw, pair / 4), static_cast<unsigned>(4 * (pair % 4))),
                              _mm512_set1_epi16(15));
  }
};

template <class Format>
void run_int8_avx512(const PackedMm& p) {
  run_vector_mm<Int8Avx512, Format>(p);
}

}  // namespace
