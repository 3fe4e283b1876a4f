#include "simd/vec_ref.h"

#include "ops/rmsnorm_quantize/rmsnorm_quantize.h"
#include "rows/quantize_rows_vector.h"

void aoq::rmsnorm_quantize_ref(const QuantizeRows& p) { quantize_rows_from<RmsnormSource>(p); }
