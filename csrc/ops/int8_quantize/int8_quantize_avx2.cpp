#include "simd/vec_avx2.h"

#include "ops/int8_quantize/int8_quantize.h"
#include "rows/quantize_rows_vector.h"

void aoq::int8_quantize_avx2(const QuantizeRows& p) { quantize_rows<GivenSource, Int8Codes>(p); }
