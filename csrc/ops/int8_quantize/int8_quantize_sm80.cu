#include "ops/int8_quantize/int8_quantize.h"
#include "rows/quantize_rows.cuh"

void aoq::int8_quantize_sm80(const QuantizeRows& p, CudaStream stream) {
  quantize_rows<RowSource::given, Codes::int8>(p, stream);
}
