// int8 activations on AVX_VNNI: vpdpbusd adds four products of unsigned codes and signed activations to each int32.
#pragma once
#include "mm/x_int8_avx2.h"

namespace {

template <class Format, bool kByWord = false>
struct Int8AvxVnni : Int8Avx2<Format, kByWord> {  // X holds four int8
  using Base = Int8Avx2<Format, kByWord>;
  using typename Base::Of, typename Base::Raw, typename Base::Sum, typename Base::Weight, typename Base::X;
  static constexpr int kStep = 4, kFusedTile = 6;

  static Sum dot(Sum sum, Weight weight, const X* x) {
    return (Sum)_mm256_dpbusd_avx_epi32((__m256i)sum, weight, _mm256_set1_epi32(static_cast<int>(*x)));
  }

  // A word's low nibbles are the quads k = 0,4,1,5 and its high ones k = 2,6,3,7: x is laid out alike. A word of bytes
  // is a quad.
  static Weight decode(const Raw& raw, int quad) {
    if constexpr (Format::kBits == 8)
      return Of::word(raw, 0);
    else if constexpr (Of::kUpper)
      return Of::bytes(raw, quad / 2, quad % 2);
    else
      return _mm256_and_si256(_mm256_srli_epi16(Of::word(raw, quad / 2), 4 * (quad % 2)), _mm256_set1_epi8(15));
  }

  static const X* words(const int8_t* codes, int64_t steps, X* memory) {
    if constexpr (Format::kBits == 8) {
      std::memcpy(memory, codes, static_cast<size_t>(steps) * 4);
    } else {
      const __m128i order = _mm_set_epi32(0x0f0b0e0a, 0x0d090c08, 0x07030602, 0x05010400);  // 0 4 1 5 2 6 3 7
      for (int64_t step = 0; step < steps; step += 2, codes += 8) {
        const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes));
        _mm_storel_epi64(reinterpret_cast<__m128i*>(memory + step), _mm_shuffle_epi8(eight, order));
      }
    }
    return memory;
  }
};

template <class Format>
void run_int8_avxvnni(const PackedMm& p) {
  run_vector_mm<Int8AvxVnni, Format>(p);
}

}  // namespace
