#include "simd/vec_avx512.h"

#include "ops/silu_mul_quantize/silu_mul_quantize.h"
#include "rows/quantize_rows_vector.h"

void aoq::silu_mul_quantize_avx512(const QuantizeRows& p) { quantize_rows_from<SiluMulSource>(p); }
