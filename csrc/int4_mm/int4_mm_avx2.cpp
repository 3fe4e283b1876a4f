// AVX2: one k a step in fp32. There is no sixteen-entry look-up: flipping a code's top bit makes it (code - 8) in two's
// complement, which two shifts sign-extend.
#include "core/vec_avx2.h"

#include "core/int4.h"
#include "core/packed_mm_vector.h"
#include "int4_mm/int4_mm.h"

namespace {

struct Avx2F32 : Avx2 {
  using Sum = Vec;
  using Raw = __m256i;
  using Weight = __m256;
  using X = float;
  static constexpr bool kInt8 = false;
  static constexpr float kMid = aoq::int4::kMidCode, kOffset = 8;
  static constexpr int kUnitK = aoq::int4::kUnitK, kStep = 1, kTileRows = 6, kFusedRows = 16;

  static Raw load_raw(const uint8_t* unit) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(unit)); }

  static Weight decode(Raw raw, int k) {
    const __m256i nibbles = _mm256_xor_si256(raw, _mm256_set1_epi32(static_cast<int>(0x88888888)));
    const __m256i top = _mm256_slli_epi32(nibbles, 28 - aoq::int4::lane_shift(k));
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(top, 28));
  }

  static Weight decode_scaled(Raw raw, int k, Vec scale, Vec shift) { return fma(decode(raw, k), scale, shift); }

  static Weight load_weight(const float* data) { return _mm256_loadu_ps(data); }
  static void store_weight(float* data, Weight weight) { _mm256_storeu_ps(data, weight); }
  static Vec dot(Vec sum, Weight weight, const X* x) { return _mm256_fmadd_ps(weight, _mm256_broadcast_ss(x), sum); }
  static void pack(const void* x, aoq::Dtype dtype, int64_t k, int64_t steps, X* out, int64_t stride) {
    pack_f32<Avx2>(x, dtype, k, steps, out, stride);
  }
};

}  // namespace

void aoq::int4_mm_avx2(const PackedMm& p) { VectorMm<Avx2F32>::run(p); }
