// Shifting a unit's 16-bit words leaves pairs of k in the low nibbles.
#include "mm/x_int8_avx512.h"

#include "formats/int4.h"
#include "ops/int8_int4_mm/int8_int4_mm.h"

namespace {

struct Int8Int4MmAvx512 : Int8Avx512 {
  static constexpr float kMid = aoq::int4::kMidCode;
  static constexpr int kUnitK = aoq::int4::kUnitK, kFusedRows = kFusedTile;

  static Weight decode(Raw raw, int pair) {
    return _mm512_and_si512(_mm512_srli_epi16(raw, static_cast<unsigned>(4 * pair)), _mm512_set1_epi16(15));
  }

  static const X* words(const int8_t* codes, int64_t steps, X* memory) {
    for (int64_t step = 0; step < steps; ++step) memory[step] = pair(codes[2 * step], codes[2 * step + 1]);
    return memory;
  }
};

}  // namespace

void aoq::int8_int4_mm_avx512(const PackedMm& p) { VectorMm<Int8Int4MmAvx512>::run(p); }
