#include "core/vec_avx512.h"

#include "int8_quantize/int8_quantize_vector.h"

void aoq::int8_quantize_avx512(const Int8Quantize& p) { quantize(p); }
