#include <immintrin.h>

#include "probe/chains.h"
#include "probe/probe.h"

double aoq::peak_f32_avx2(int64_t iterations) {
  const __m256 ones = _mm256_set1_ps(1);
  const auto step = [=](__m256 sum) { return _mm256_fmadd_ps(ones, ones, sum); };
  return run_chains<float, 8>(iterations, _mm256_setzero_ps(), step);
}

// Codes of four bits with bytes: sums of 16 bits hold eight products of each byte, then 32 bits take them.
double aoq::peak_int4_avx2(int64_t iterations) {
  __m256i ones = _mm256_set1_epi8(1);
  const __m256i pairs = _mm256_set1_epi16(1);
  const auto step = [&](__m256i sum) {
    __m256i part = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      asm volatile("" : "+x"(ones));  // or the product would be made once
      part = _mm256_add_epi16(part, _mm256_maddubs_epi16(ones, ones));
    }
    return _mm256_add_epi32(sum, _mm256_madd_epi16(part, pairs));
  };
  return run_chains<int32_t, 8>(iterations, _mm256_setzero_si256(), step);
}

// Bytes are widened to 16 bits and multiplied in pairs.
double aoq::peak_int8_avx2(int64_t iterations) {
  __m256i ones = _mm256_set1_epi16(1);
  const auto step = [&](__m256i sum) {
    asm volatile("" : "+x"(ones));  // or the product would be made once
    return _mm256_add_epi32(sum, _mm256_madd_epi16(ones, ones));
  };
  return run_chains<int32_t, 8>(iterations, _mm256_setzero_si256(), step);
}
