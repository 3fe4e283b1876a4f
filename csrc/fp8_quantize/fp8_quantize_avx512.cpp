#include "core/vec_avx512.h"

#include "core/quantize_rows_vector.h"
#include "fp8_quantize/fp8_quantize.h"

void aoq::fp8_quantize_avx512(const QuantizeRows& p) { quantize_rows_from<GivenSource>(p); }
