#include "core/vec_ref.h"

#include "core/quantize_rows_vector.h"
#include "int8_quantize/int8_quantize.h"

void aoq::int8_quantize_ref(const QuantizeRows& p) { quantize_rows<GivenSource, Int8Codes>(p); }
