// AVX-512 without bf16. A vector permutation looks sixteen codes up, already minus 8.
#include "mm/x_float_avx512.h"

#include "formats/int4.h"
#include "ops/int4_mm/int4_mm.h"

namespace {

struct Int4Avx512 : FloatAvx512 {
  static constexpr bool kScaleLast = false;
  static constexpr float kMid = aoq::int4::kMidCode, kOffset = 8;
  static constexpr int kUnitK = aoq::int4::kUnitK;

  static Weight decode(Raw raw, int k) {
    const __m512 values = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    // The permutation reads the low four bits of each lane.
    return _mm512_permutexvar_ps(_mm512_srli_epi32(raw, static_cast<unsigned>(aoq::int4::lane_shift(k))), values);
  }

  static Weight decode_scaled(Raw raw, int k, Vec scale, Vec shift) { return fma(decode(raw, k), scale, shift); }
};

}  // namespace

void aoq::int4_mm_avx512(const PackedMm& p) { VectorMm<Int4Avx512>::run(p); }
