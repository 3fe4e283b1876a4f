#include <immintrin.h>

#include "probe/chains.h"
#include "probe/probe.h"

double aoq::peak_bf16_avx512bf16(int64_t iterations) {
  const __m512bh ones = _mm512_cvtne2ps_pbh(_mm512_set1_ps(1), _mm512_set1_ps(1));
  const auto step = [=](__m512 sum) { return _mm512_dpbf16_ps(sum, ones, ones); };
  return run_chains<float, 16>(iterations, _mm512_setzero_ps(), step);
}
