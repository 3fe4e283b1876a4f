#include "simd/vec_ref.h"

#include "ops/fp8_quantize/fp8_quantize.h"
#include "rows/quantize_rows_vector.h"

void aoq::fp8_quantize_ref(const QuantizeRows& p) { quantize_rows_from<GivenSource>(p); }
