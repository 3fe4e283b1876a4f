#include "core/vec_ref.h"

#include "int8_quantize/int8_quantize_vector.h"

void aoq::int8_quantize_ref(const Int8Quantize& p) { quantize(p); }
