#include "core/quantize_rows.cuh"
#include "silu_mul_quantize/silu_mul_quantize.h"

void aoq::silu_mul_quantize_sm80(const QuantizeRows& p, CudaStream stream) {
  quantize_rows_from<RowSource::silu_mul>(p, stream);
}
