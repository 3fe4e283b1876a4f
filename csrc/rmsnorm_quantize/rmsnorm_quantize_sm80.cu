#include "core/quantize_rows.cuh"
#include "rmsnorm_quantize/rmsnorm_quantize.h"

void aoq::rmsnorm_quantize_sm80(const QuantizeRows& p, CudaStream stream) {
  quantize_rows_from<RowSource::rmsnorm>(p, stream);
}
