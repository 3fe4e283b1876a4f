// The even bytes of a unit are k = 0,2 and the odd ones k = 1,3: x is laid out alike.
#include "mm/x_int8_avx2.h"

#include "formats/int8.h"
#include "ops/int8_mm/int8_mm.h"

namespace {

struct Int8MmAvx2 : Int8Avx2 {
  static constexpr float kMid = aoq::int8::kMidCode;
  static constexpr int kUnitK = aoq::int8::kUnitK;

  static Weight decode(Raw raw, int odd) {
    return odd ? _mm256_srli_epi16(raw, 8) : _mm256_and_si256(raw, _mm256_set1_epi16(255));
  }

  static const X* words(const int8_t* codes, int64_t steps, X* memory) {
    for (int64_t step = 0; step < steps; step += 2, codes += kUnitK) {
      memory[step] = pair(codes[0], codes[2]);
      memory[step + 1] = pair(codes[1], codes[3]);
    }
    return memory;
  }
};

}  // namespace

void aoq::int8_mm_avx2(const PackedMm& p) { VectorMm<Int8MmAvx2>::run(p); }
