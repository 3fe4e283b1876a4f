#include "core/vec_avx2.h"

#include "core/quantize_rows_vector.h"
#include "int8_quantize/int8_quantize.h"

void aoq::int8_quantize_avx2(const QuantizeRows& p) { quantize_rows<GivenSource, Int8Codes>(p); }
