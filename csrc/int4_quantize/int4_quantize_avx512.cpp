#include "core/vec_avx512.h"
#include "int4_quantize/int4_quantize_rows.h"

void aoq::int4_quantize_avx512(const Int4Quantize& p) { quantize(p); }
