// AVX-512 without bf16: one k a step in fp32. A vector permutation looks sixteen codes up, already minus 8.
#include "core/vec_avx512.h"

#include "core/int4.h"
#include "core/packed_mm_vector.h"
#include "int4_mm/int4_mm.h"

namespace {

struct Avx512F32 : Avx512 {
  using Sum = Vec;
  using Raw = __m512i;
  using Weight = __m512;
  using X = float;
  static constexpr bool kInt8 = false;
  static constexpr float kMid = aoq::int4::kMidCode, kOffset = 8;
  static constexpr int kUnitK = aoq::int4::kUnitK, kStep = 1, kTileRows = 12, kFusedRows = 40;

  static Raw load_raw(const uint8_t* unit) { return _mm512_loadu_si512(unit); }

  static Weight decode(Raw raw, int k) {
    const __m512 values = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    // The permutation reads the low four bits of each lane.
    return _mm512_permutexvar_ps(_mm512_srli_epi32(raw, static_cast<unsigned>(aoq::int4::lane_shift(k))), values);
  }

  static Weight decode_scaled(Raw raw, int k, Vec scale, Vec shift) { return fma(decode(raw, k), scale, shift); }

  static Weight load_weight(const float* data) { return _mm512_loadu_ps(data); }
  static void store_weight(float* data, Weight weight) { _mm512_storeu_ps(data, weight); }
  static Vec dot(Vec sum, Weight weight, const X* x) { return _mm512_fmadd_ps(weight, _mm512_set1_ps(*x), sum); }
  static void pack(const void* x, aoq::Dtype dtype, int64_t k, int64_t steps, X* out, int64_t stride) {
    pack_f32<Avx512>(x, dtype, k, steps, out, stride);
  }
};

}  // namespace

void aoq::int4_mm_avx512(const PackedMm& p) { VectorMm<Avx512F32>::run(p); }
