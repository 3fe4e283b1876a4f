// int8 activations on AVX512_VNNI: vpdpbusd adds four products of unsigned codes and signed activations to each int32.
#pragma once
#include "mm/x_int8_avx512.h"

namespace {

template <class Format, bool kByWord = false>
struct Int8Avx512Vnni : Int8Avx512<Format, kByWord> {  // X holds four int8
  using Base = Int8Avx512<Format, kByWord>;
  using typename Base::Of, typename Base::Raw, typename Base::Sum, typename Base::Weight, typename Base::X;
  static constexpr int kStep = 4, kFusedRows = kAllRows;

  static Sum dot(Sum sum, Weight weight, const X* x) {
    return (Sum)_mm512_dpbusd_epi32((__m512i)sum, weight, _mm512_set1_epi32(static_cast<int>(*x)));
  }

  // A word's low nibbles are the quads k = 0,4,1,5 and its high ones k = 2,6,3,7: x is laid out alike. A word of bytes
  // is a quad.
  static Weight decode(const Raw& raw, int quad) {
    if constexpr (Format::kBits == 8)
      return Of::word(raw, 0);
    else if constexpr (Of::kUpper)
      return Of::bytes(raw, quad / 2, quad % 2);
    else
      return _mm512_and_si512(_mm512_srli_epi16(Of::word(raw, quad / 2), static_cast<unsigned>(4 * (quad % 2))),
                              _mm512_set1_epi8(15));
  }

  static const X* words(const int8_t* codes, int64_t steps, X* memory) {
    if constexpr (Format::kBits == 8) {
      std::memcpy(memory, codes, static_cast<size_t>(steps) * 4);
    } else {
      const __m512i order = _mm512_set4_epi32(0x0f0b0e0a, 0x0d090c08, 0x07030602, 0x05010400);  // 0 4 1 5 2 6 3 7
      for (int64_t step = 0; step < steps; step += 16, codes += 64) {
        const __mmask16 rest = static_cast<__mmask16>(steps - step < 16 ? (1 << (steps - step)) - 1 : 0xffff);
        _mm512_mask_storeu_epi32(memory + step, rest,
                                 _mm512_shuffle_epi8(_mm512_maskz_loadu_epi32(rest, codes), order));
      }
    }
    return memory;
  }
};

template <class Format>
void run_int8_avx512vnni(const PackedMm& p) {
  run_vector_mm<Int8Avx512Vnni, Format>(p);
}

}  // namespace
