// bf16 activations and fp8 weights on AVX512_VBMI: two look-ups give the bytes of a whole unit's weights in bf16, so it
// is never worth decoding into L1.
#pragma once
#include "mm/x_given_avx512bf16.h"

#include "formats/fp8_vbmi.h"

namespace {

template <class Format, bool = false>
struct FloatAvx512Vbmi : PairsAvx512Bf16, Units<Int512, Format> {
  using Of = Units<Int512, Format>;
  using Raw = Fp8Unit;
  static constexpr bool kScaleLast = !Format::kGrouped;
  static constexpr float kMid = 0, kOffset = 0;
  static constexpr int kFusedRows = 192;

  static Raw load_raw(const uint8_t* stream, int64_t unit) {
    return fp8_unit<typename Format::Fp8>(Of::load_unit(stream, unit).word[0]);
  }
  static Weight decode(const Raw& raw, int pair) { return fp8_pairs(raw, pair); }
  static Weight decode_scaled(const Raw& raw, int pair, Vec scale, Vec shift) {
    return scaled(decode(raw, pair), scale, shift);
  }
};

template <class Format>
void run_given_avx512vbmi(const PackedMm& p) {
  run_vector_mm<FloatAvx512Vbmi, Format>(p);
}

}  // namespace
