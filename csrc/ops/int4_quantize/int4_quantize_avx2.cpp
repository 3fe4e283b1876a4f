#include "simd/vec_avx2.h"
#include "ops/int4_quantize/int4_quantize_rows.h"

void aoq::int4_quantize_avx2(const Int4Quantize& p) { quantize(p); }
