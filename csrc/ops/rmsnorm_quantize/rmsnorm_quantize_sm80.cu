#include "ops/rmsnorm_quantize/rmsnorm_quantize.h"
#include "rows/quantize_rows.cuh"

void aoq::rmsnorm_quantize_sm80(const QuantizeRows& p, CudaStream stream) {
  quantize_rows_from<RowSource::rmsnorm>(p, stream);
}
