// A unit's low nibbles are the quads k = 0,4,1,5 and its high ones k = 2,6,3,7: x is laid out alike.
#include "core/int8_avx512vnni.h"

#include "core/int4.h"
#include "int8_int4_mm/int8_int4_mm.h"

namespace {

struct Int8Int4MmAvx512vnni : Int8Avx512Vnni {
  static constexpr float kMid = aoq::int4::kMidCode;
  static constexpr int kUnitK = aoq::int4::kUnitK;

  static Weight decode(Raw raw, int half) {
    return _mm512_and_si512(_mm512_srli_epi16(raw, static_cast<unsigned>(4 * half)), _mm512_set1_epi8(15));
  }

  static void pack(const int8_t* codes, int64_t steps, X* out, int64_t stride) {
    for (int64_t step = 0; step < steps; step += 2, codes += kUnitK) {
      const int8_t quads[kUnitK] = {codes[0], codes[4], codes[1], codes[5], codes[2], codes[6], codes[3], codes[7]};
      std::memcpy(out + step * stride, quads, 4);
      std::memcpy(out + (step + 1) * stride, quads + 4, 4);
    }
  }
};

}  // namespace

void aoq::int8_int4_mm_avx512vnni(const PackedMm& p) { VectorMm<Int8Int4MmAvx512vnni>::run(p); }
