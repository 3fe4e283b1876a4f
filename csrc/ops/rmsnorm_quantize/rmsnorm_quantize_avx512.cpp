#include "simd/vec_avx512.h"

#include "ops/rmsnorm_quantize/rmsnorm_quantize.h"
#include "rows/quantize_rows_vector.h"

void aoq::rmsnorm_quantize_avx512(const QuantizeRows& p) { quantize_rows_from<RmsnormSource>(p); }
