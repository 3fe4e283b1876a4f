#include "simd/vec_ref.h"
#include "ops/int4_quantize/int4_quantize_rows.h"

void aoq::int4_quantize_ref(const Int4Quantize& p) { quantize(p); }
