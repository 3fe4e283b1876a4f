// bf16 activations on AMX-BF16: tiles of 16 rows of x by 32 k against 32 k by 16 rows of w. Products are exact, sums
// fp32.
#pragma once
#include "mm/packed_mm_amx.h"

namespace {

struct FloatAmx : Avx512 {
  static constexpr bool kInt8 = false;
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
};

}  // namespace
