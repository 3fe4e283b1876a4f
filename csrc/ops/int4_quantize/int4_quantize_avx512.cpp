#include "simd/vec_avx512.h"
#include "ops/int4_quantize/int4_quantize_rows.h"

void aoq::int4_quantize_avx512(const Int4Quantize& p) { quantize(p); }
