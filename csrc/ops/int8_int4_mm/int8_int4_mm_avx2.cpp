// Shifting a unit's 16-bit words leaves pairs of k in the low nibbles.
#include "mm/x_int8_avx2.h"

#include "formats/int4.h"
#include "ops/int8_int4_mm/int8_int4_mm.h"

namespace {

struct Int8Int4MmAvx2 : Int8Avx2 {
  static constexpr float kMid = aoq::int4::kMidCode;
  static constexpr int kUnitK = aoq::int4::kUnitK;

  static Weight decode(Raw raw, int pair) {
    return _mm256_and_si256(_mm256_srli_epi16(raw, 4 * pair), _mm256_set1_epi16(15));
  }

  static const X* words(const int8_t* codes, int64_t steps, X* memory) {
    for (int64_t step = 0; step < steps; ++step) memory[step] = pair(codes[2 * step], codes[2 * step + 1]);
    return memory;
  }
};

}  // namespace

void aoq::int8_int4_mm_avx2(const PackedMm& p) { VectorMm<Int8Int4MmAvx2>::run(p); }
