// A thread unpacks the sixteen bytes of one lane; see int4_pack_sm80.cu.
#include "cuda/grid.cuh"
#include "formats/int4_cuda.h"
#include "ops/int4_unpack/int4_unpack.h"

namespace aoq {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) unpack(Int4Unpack p) {
  const auto* lanes = reinterpret_cast<const int4_cuda::Lane*>(p.packed);
  for (int64_t i = first_item(); i < int4_cuda::lane_count(p.n, p.k); i += item_stride())
    int4_cuda::unpack_lane(lanes[i], p.qdata, p.n, p.k, i);
}

}  // namespace

void int4_unpack_sm80(const Int4Unpack& p, CudaStream stream) {
  launch(unpack, grid_for(int4_cuda::lane_count(p.n, p.k), kThreads), kThreads, stream, p);
}

}  // namespace aoq
