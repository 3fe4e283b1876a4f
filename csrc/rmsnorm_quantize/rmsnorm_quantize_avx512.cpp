#include "core/vec_avx512.h"

#include "core/quantize_rows_vector.h"
#include "rmsnorm_quantize/rmsnorm_quantize.h"

void aoq::rmsnorm_quantize_avx512(const QuantizeRows& p) { quantize_rows_from<RmsnormSource>(p); }
