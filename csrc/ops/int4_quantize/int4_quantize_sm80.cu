// Half a warp quantizes a group: its sixteen threads are the sixteen lanes of the CPU's plan. Every pass over the group
// reads w again, from L1; HQQ makes up to 160 passes and is bound by arithmetic.
#include "cuda/vec_cuda.cuh"
#include "cuda/grid.cuh"
#include "ops/int4_quantize/int4_quantize_vector.h"

namespace aoq {
namespace {

constexpr int kThreads = 128;

struct GivenValues {
  const void* group;
  Dtype dtype;
  int64_t count;
  __device__ F32x16 operator()(int64_t vector) const { return load16_part(group, dtype, vector * 16, count); }
};

template <int kBits>
__global__ void __launch_bounds__(kThreads) quantize(Int4Quantize p) {
  const int64_t group = p.group, groups = ceil_div(p.k, group);
  for (int64_t at = first_item() / 16; at < p.n * groups; at += item_stride() / 16) {
    const int64_t row = at / groups, first = at % groups * group;
    const int64_t count = p.k - first < group ? p.k - first : group;
    const auto* data = static_cast<const char*>(p.w) + (row * p.w_stride + first) * size_of(p.w_dtype);
    const Group<GivenValues> values{{data, p.w_dtype, count}, count};
    quantize_group(p, values, values.range(), at, p.qdata + row * ceil_div(p.k * kBits, 8) + first * kBits / 8, kBits);
  }
}

}  // namespace

void int4_quantize_sm80(const Int4Quantize& p, CudaStream stream) {
  const int64_t groups = ceil_div(p.k, p.group);
  const auto run = [&](auto kernel) { launch(kernel, grid_for(p.n * groups * 16, kThreads), kThreads, stream, p); };
  switch (p.bits) {
    case 1: return run(quantize<1>);
    case 2: return run(quantize<2>);
    case 3: return run(quantize<3>);
    case 4: return run(quantize<4>);
    case 5: return run(quantize<5>);
    case 6: return run(quantize<6>);
    case 7: return run(quantize<7>);
    default: return run(quantize<8>);
  }
}

}  // namespace aoq
