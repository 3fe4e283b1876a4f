// bf16 activations on AMX-BF16: tiles of 16 rows of x by 32 k against 32 k by 16 rows of w. Products are exact, sums
// fp32.
#pragma once
#include "mm/packed_mm_amx.h"

#include "formats/bf16.h"
#include "formats/fp8_vbmi.h"
#include "mm/units.h"

namespace {

template <class Format>
struct FloatAmx : Avx512, Units<Int512, Format, true> {
  using Of = Units<Int512, Format, true>;
  static constexpr bool kInt8 = false;
  static constexpr float kMid = Format::kMid, kOffset = kMid;  // codes are decoded around it
  static constexpr int64_t kTileK = 32;

  static __m512i load_x(const char* row, int64_t first, int64_t count) {
    const __mmask32 mask = static_cast<__mmask32>((uint64_t{1} << count) - 1);
    return _mm512_maskz_loadu_epi16(mask, row + first * 2);
  }
  template <int sum, int a, int b>
  static void dot() {
    tile_dot_bf16<sum, a, b>();
  }
  static __m512 product(const float* sums) { return _mm512_load_ps(sums); }

  // A word of nibbles is four rows of a tile, bf16 pairs of k by sixteen rows of w; a word of bytes is two.
  static void decode(const typename Of::Words& words, uint8_t* rows) {
    const __m512i word = words.word[0];
    if constexpr (Of::kUpper) {
#pragma GCC unroll 4
      for (int pair = 0; pair < 4; ++pair)
        _mm512_store_si512(rows + 64 * pair, bf16_pairs<Format>(Of::halves(words, 0, pair)));
    } else if constexpr (Format::kFp8) {
      const Fp8Unit unit = fp8_unit<typename Format::Fp8>(word);
      _mm512_store_si512(rows, fp8_pairs(unit, 0));
      _mm512_store_si512(rows + 64, fp8_pairs(unit, 1));
    } else if constexpr (Format::kBits == 8) {
      _mm512_store_si512(rows, int8_pairs(word, 0));
      _mm512_store_si512(rows + 64, int8_pairs(word, 1));
    } else {
      const __m512i values = bf16_table<Format>();
      _mm512_store_si512(rows, _mm512_permutexvar_epi16(word, values));
      _mm512_store_si512(rows + 64, _mm512_permutexvar_epi16(_mm512_srli_epi16(word, 4), values));
      _mm512_store_si512(rows + 128, _mm512_permutexvar_epi16(_mm512_srli_epi16(word, 8), values));
      _mm512_store_si512(rows + 192, _mm512_permutexvar_epi16(_mm512_srli_epi16(word, 12), values));
    }
  }
};

template <class Format>
void run_given_amx(const PackedMm& p) {
  AmxMm<FloatAmx<Format>>(p).run();
}

}  // namespace
