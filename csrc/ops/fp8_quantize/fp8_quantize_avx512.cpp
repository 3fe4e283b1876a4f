#include "simd/vec_avx512.h"

#include "ops/fp8_quantize/fp8_quantize.h"
#include "rows/quantize_rows_vector.h"

void aoq::fp8_quantize_avx512(const QuantizeRows& p) { quantize_rows_from<GivenSource>(p); }
