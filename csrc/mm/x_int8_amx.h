// int8 activations on AMX: tiles of 16 rows of x by 64 k, signed, against 64 k by 16 rows of w, unsigned; exact int32
// sums.
#pragma once
#include "mm/packed_mm_amx.h"

namespace {

struct Int8Amx : Avx512 {
  static constexpr bool kInt8 = true;
  static constexpr float kOffset = 0;
  static constexpr int64_t kTileK = 64;

  static __m512i load_codes(const char* row, int64_t first, int64_t count) {
    const __mmask64 mask = count < 64 ? (uint64_t{1} << count) - 1 : ~uint64_t{0};
    return _mm512_maskz_loadu_epi8(mask, row + first);
  }
  template <int sum, int a, int b>
  static void dot() {
    tile_dot_int8<sum, a, b>();
  }
  static __m512 product(const float* sums) { return _mm512_cvtepi32_ps(_mm512_load_si512(sums)); }
};

}  // namespace
