#include "base/dtype.h"
#include "cuda/grid.cuh"
#include "mm/cuda/experts.h"

namespace aoq {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) widen(const CodesAsBf16 p) {
  for (int64_t to = first_item(); to < p.m * p.pitch; to += item_stride()) {
    const int64_t row = to / p.pitch, column = to % p.pitch;
    const int code = column < p.k ? p.codes[row * p.codes_stride + column] : 0;
    p.x[to] = static_cast<uint16_t>(float_to_bf16(static_cast<float>(code)));
  }
}

}  // namespace

void codes_as_bf16_sm80(const CodesAsBf16& rows, CudaStream stream) {
  launch(widen, grid_for(rows.m * rows.pitch, kThreads), kThreads, stream, rows);
}

}  // namespace aoq
