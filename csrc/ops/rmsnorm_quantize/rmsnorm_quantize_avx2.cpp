#include "simd/vec_avx2.h"

#include "ops/rmsnorm_quantize/rmsnorm_quantize.h"
#include "rows/quantize_rows_vector.h"

void aoq::rmsnorm_quantize_avx2(const QuantizeRows& p) { quantize_rows_from<RmsnormSource>(p); }
