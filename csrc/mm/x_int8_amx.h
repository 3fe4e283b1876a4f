// int8 activations on AMX: tiles of 16 rows of x by 64 k, signed, against 64 k by 16 rows of w, unsigned; exact int32
// sums.
#pragma once
#include "mm/packed_mm_amx.h"

#include "mm/units.h"

namespace {

template <class Format>
struct Int8Amx : Avx512, Units<Int512, Format, true> {
  using Of = Units<Int512, Format, true>;
  static constexpr bool kInt8 = true;
  static constexpr float kMid = Format::kMid, kOffset = 0;
  static constexpr int64_t kTileK = 64;

  // Within each 8 k of nibbles, their order in a word: low ones first.
  static __m512i load_x(const char* row, int64_t first, int64_t count) {
    const __mmask64 mask = count < 64 ? (uint64_t{1} << count) - 1 : ~uint64_t{0};
    const __m512i codes = _mm512_maskz_loadu_epi8(mask, row + first);
    if constexpr (Format::kBits == 8) return codes;
    const __m128i order = _mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
    return _mm512_shuffle_epi8(codes, _mm512_broadcast_i32x4(order));
  }
  template <int sum, int a, int b>
  static void dot() {
    tile_dot_int8<sum, a, b>();
  }
  static __m512 product(const float* sums) { return _mm512_cvtepi32_ps(_mm512_load_si512(sums)); }

  // Quads of k by sixteen rows of w: low nibbles of a word are one row of a tile, high nibbles the next; a word of
  // bytes is one.
  static void decode(const typename Of::Words& words, uint8_t* rows) {
    if constexpr (Format::kBits == 8) {
      _mm512_store_si512(rows, words.word[0]);
    } else {
      _mm512_store_si512(rows, Of::bytes(words, 0, false));
      _mm512_store_si512(rows + 64, Of::bytes(words, 0, true));
    }
  }
};

template <class Format>
void run_int8_amx(const PackedMm& p) {
  AmxMm<Int8Amx<Format>>(p).run();
}

}  // namespace
