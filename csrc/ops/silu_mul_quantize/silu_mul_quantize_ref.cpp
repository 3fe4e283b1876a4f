#include "simd/vec_ref.h"

#include "ops/silu_mul_quantize/silu_mul_quantize.h"
#include "rows/quantize_rows_vector.h"

void aoq::silu_mul_quantize_ref(const QuantizeRows& p) { quantize_rows_from<SiluMulSource>(p); }
