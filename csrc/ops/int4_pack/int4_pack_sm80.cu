// A thread packs the sixteen bytes that one lane of a multiplying warp will own. Its warp reads 32 bytes of each of
// sixteen rows, whole sectors, a byte a lane: L1 holds them between the sixteen loads.
#include "cuda/grid.cuh"
#include "formats/int4_cuda.h"
#include "ops/int4_pack/int4_pack.h"

namespace aoq {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) pack(Int4Pack p) {
  auto* lanes = reinterpret_cast<int4_cuda::Lane*>(p.packed);
  for (int64_t i = first_item(); i < int4_cuda::lane_count(p.n, p.k); i += item_stride())
    lanes[i] = int4_cuda::pack_lane(p.qdata, p.n, p.k, i);
}

}  // namespace

void int4_pack_sm80(const Int4Pack& p, CudaStream stream) {
  launch(pack, grid_for(int4_cuda::lane_count(p.n, p.k), kThreads), kThreads, stream, p);
}

}  // namespace aoq
