#include "ops/silu_mul_quantize/silu_mul_quantize.h"
#include "rows/quantize_rows.cuh"

void aoq::silu_mul_quantize_sm80(const QuantizeRows& p, CudaStream stream) {
  quantize_rows_from<RowSource::silu_mul>(p, stream);
}
