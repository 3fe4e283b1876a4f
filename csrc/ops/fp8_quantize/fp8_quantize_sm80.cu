#include "ops/fp8_quantize/fp8_quantize.h"
#include "rows/quantize_rows.cuh"

void aoq::fp8_quantize_sm80(const QuantizeRows& p, CudaStream stream) {
  quantize_rows_from<RowSource::given>(p, stream);
}
