#include "core/vec_avx2.h"

#include "core/quantize_rows_vector.h"
#include "silu_mul_quantize/silu_mul_quantize.h"

void aoq::silu_mul_quantize_avx2(const QuantizeRows& p) { quantize_rows_from<SiluMulSource>(p); }
