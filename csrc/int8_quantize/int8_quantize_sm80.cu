#include "core/quantize_rows.cuh"
#include "int8_quantize/int8_quantize.h"

void aoq::int8_quantize_sm80(const QuantizeRows& p, CudaStream stream) {
  quantize_rows<RowSource::given, Codes::int8>(p, stream);
}
