// AVX2: one k a step in fp32. There is no sixteen-entry look-up, so codes stay 0..15 and the offset goes to the sums of x.
#include "core/vec_avx2.h"
#include "int4_mm/int4_mm_vector.h"

namespace {

struct Avx2F32 : Avx2 {
  using Raw = __m256i;
  using Weight = __m256;
  using X = float;
  static constexpr int kStep = 1, kTileRows = 6, kFusedRows = 2;
  static constexpr float kOffset = 0;

  static Raw load_raw(const uint8_t* unit) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(unit)); }

  static Weight decode(Raw raw, int k) {
    const __m256i shifted = _mm256_srli_epi32(raw, aoq::int4::lane_shift(k));
    return _mm256_cvtepi32_ps(_mm256_and_si256(shifted, _mm256_set1_epi32(15)));
  }

  static Weight load_weight(const float* data) { return _mm256_loadu_ps(data); }
  static void store_weight(float* data, Weight weight) { _mm256_storeu_ps(data, weight); }
  static Vec dot(Vec sum, Weight weight, const X* x) { return _mm256_fmadd_ps(weight, _mm256_broadcast_ss(x), sum); }
  static void pack(const void* x, aoq::Dtype dtype, int64_t k, int64_t steps, X* out, int64_t stride) {
    pack_f32<Avx2>(x, dtype, k, steps, out, stride);
  }
};

}  // namespace

void aoq::int4_mm_avx2(const Int4Mm& p) { VectorMm<Avx2F32>::run(p); }
