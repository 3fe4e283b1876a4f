#include <immintrin.h>

#include "probe/chains.h"
#include "probe/probe.h"

double aoq::peak_int8_avx512vnni(int64_t iterations) {
  const __m512i ones = _mm512_set1_epi8(1);
  const auto step = [=](__m512i sum) { return _mm512_dpbusd_epi32(sum, ones, ones); };
  return run_chains<int32_t, 16>(iterations, _mm512_setzero_si512(), step);
}
