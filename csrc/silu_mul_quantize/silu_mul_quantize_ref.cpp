#include "core/vec_ref.h"

#include "core/quantize_rows_vector.h"
#include "silu_mul_quantize/silu_mul_quantize.h"

void aoq::silu_mul_quantize_ref(const QuantizeRows& p) { quantize_rows_from<SiluMulSource>(p); }
