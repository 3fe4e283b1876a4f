#include "core/quantize_rows.cuh"
#include "fp8_quantize/fp8_quantize.h"

void aoq::fp8_quantize_sm80(const QuantizeRows& p, CudaStream stream) {
  quantize_rows_from<RowSource::given>(p, stream);
}
