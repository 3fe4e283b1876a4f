#include "simd/vec_avx2.h"

#include "ops/silu_mul_quantize/silu_mul_quantize.h"
#include "rows/quantize_rows_vector.h"

void aoq::silu_mul_quantize_avx2(const QuantizeRows& p) { quantize_rows_from<SiluMulSource>(p); }
