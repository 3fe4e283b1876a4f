// AVX512_BF16: two k a step. vdpbf16ps multiplies bf16 pairs exactly and adds in fp32; codes minus 8 are exact in bf16.
#include "core/vec_avx512.h"

#include "core/int4.h"
#include "core/packed_mm_vector.h"
#include "int4_mm/int4_mm.h"

namespace {

struct Avx512Bf16 : Avx512 {
  using Sum = Vec;
  using Raw = __m512i;
  using Weight = __m512i;
  using X = uint32_t;  // a bf16 pair
  static constexpr bool kInt8 = false;
  static constexpr float kMid = aoq::int4::kMidCode, kOffset = 8;
  static constexpr int kUnitK = aoq::int4::kUnitK, kStep = 2, kTileRows = 12, kFusedRows = 40;

  static Raw load_raw(const uint8_t* unit) { return _mm512_loadu_si512(unit); }

  static Weight decode(Raw raw, int pair) {
    return _mm512_permutexvar_epi16(_mm512_srli_epi16(raw, static_cast<unsigned>(4 * pair)),
                                    _mm512_broadcast_i64x4(bf16_codes()));
  }

  // In fp32, one look-up for each of the two words of a lane, then rounded to bf16 pairs.
  static Weight decode_scaled(Raw raw, int pair, Vec scale, Vec shift) {
    const __m512 codes = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    auto look_up = [&](int bit) {
      return fma(_mm512_permutexvar_ps(_mm512_srli_epi32(raw, static_cast<unsigned>(bit)), codes), scale, shift);
    };
    const __m512i words = (__m512i)_mm512_cvtne2ps_pbh(look_up(4 * pair + 16), look_up(4 * pair));
    const __m512i lanes = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(lanes, words);
  }

  static Weight load_weight(const float* data) { return _mm512_loadu_si512(data); }
  static void store_weight(float* data, Weight weight) { _mm512_storeu_si512(data, weight); }
  static Vec dot(Vec sum, Weight weight, const X* x) {
    return _mm512_dpbf16_ps(sum, (__m512bh)weight, (__m512bh)_mm512_set1_epi32(static_cast<int>(*x)));
  }

  static void pack(const void* x, aoq::Dtype, int64_t k, int64_t steps, X* out, int64_t stride) {
    const char* from = static_cast<const char*>(x);
    const int64_t pairs = k / 2;
    for (int64_t step = 0; step < pairs; ++step) std::memcpy(out + step * stride, from + step * 4, 4);
    for (int64_t step = pairs; step < steps; ++step) out[step * stride] = 0;
    if (k % 2) std::memcpy(out + pairs * stride, from + pairs * 4, 2);
  }
};

}  // namespace

void aoq::int4_mm_avx512bf16(const PackedMm& p) {
  // fp16 and fp32 have more bits than a bf16 pair holds: they are multiplied in fp32.
  p.x_dtype == Dtype::bf16 ? VectorMm<Avx512Bf16>::run(p) : int4_mm_avx512(p);
}
