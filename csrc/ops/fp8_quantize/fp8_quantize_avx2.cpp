#include "simd/vec_avx2.h"

#include "ops/fp8_quantize/fp8_quantize.h"
#include "rows/quantize_rows_vector.h"

void aoq::fp8_quantize_avx2(const QuantizeRows& p) { quantize_rows_from<GivenSource>(p); }
