#include <immintrin.h>

#include "probe/chains.h"
#include "probe/probe.h"

double aoq::peak_int8_avxvnni(int64_t iterations) {
  const __m256i ones = _mm256_set1_epi8(1);
  const auto step = [=](__m256i sum) { return _mm256_dpbusd_avx_epi32(sum, ones, ones); };
  return run_chains<int32_t, 8>(iterations, _mm256_setzero_si256(), step);
}
