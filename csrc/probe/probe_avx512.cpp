#include <immintrin.h>

#include "probe/chains.h"
#include "probe/probe.h"

double aoq::peak_f32_avx512(int64_t iterations) {
  const __m512 ones = _mm512_set1_ps(1);
  const auto step = [=](__m512 sum) { return _mm512_fmadd_ps(ones, ones, sum); };
  return run_chains<float, 16>(iterations, _mm512_setzero_ps(), step);
}

// Without VNNI bytes are widened to 16 bits and multiplied in pairs.
double aoq::peak_int8_avx512(int64_t iterations) {
  __m512i ones = _mm512_set1_epi16(1);
  const auto step = [&](__m512i sum) {
    asm volatile("" : "+x"(ones));  // or the product would be made once
    return _mm512_add_epi32(sum, _mm512_madd_epi16(ones, ones));
  };
  return run_chains<int32_t, 16>(iterations, _mm512_setzero_si512(), step);
}
