#include "core/vec_ref.h"

#include "core/quantize_rows_vector.h"
#include "rmsnorm_quantize/rmsnorm_quantize.h"

void aoq::rmsnorm_quantize_ref(const QuantizeRows& p) { quantize_rows_from<RmsnormSource>(p); }
