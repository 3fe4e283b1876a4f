#include "cuda/grid.cuh"
#include "mm/cuda/experts.h"

namespace aoq {
namespace {

constexpr int kThreads = 256;

// In thread order, what `fold` makes of the values of all threads up to each one: its own is returned, all are left in
// `shared`.
template <class Fold>
__device__ int scan(int value, int* shared, Fold fold) {
  const int thread = static_cast<int>(threadIdx.x);
  shared[thread] = value;
  __syncthreads();
  for (int step = 1; step < kThreads; step *= 2) {
    const int before = thread >= step ? shared[thread - step] : 0;
    __syncthreads();
    if (thread >= step) shared[thread] = value = fold(before, value);
    __syncthreads();
  }
  return value;
}

// Where the rows of a part of x end: an expert's, or the rest's.
__device__ int end_of(const ExpertRows& p, int64_t part) {
  if (part >= p.experts) return static_cast<int>(p.m);
  const int64_t offset =
      p.offsets_int64 ? static_cast<const int64_t*>(p.offsets)[part] : static_cast<const int32_t*>(p.offsets)[part];
  return static_cast<int>(offset < 0 ? 0 : offset < p.m ? offset : p.m);
}

// One block: a thread lists the tiles of an expert, kThreads experts at a time, the rest after the last.
__global__ void __launch_bounds__(kThreads) list(const ExpertRows p) {
  __shared__ int ends[kThreads], tiles[kThreads];
  const int thread = static_cast<int>(threadIdx.x);
  int rows_before = 0, tiles_before = 0;
  for (int64_t chunk = 0; chunk <= p.experts; chunk += kThreads) {
    const int64_t part = chunk + thread;
    const int wanted = end_of(p, part), least = wanted > rows_before ? wanted : rows_before;
    const int end = scan(least, ends, [](int a, int b) { return a > b ? a : b; });
    const int begin = thread ? ends[thread - 1] : rows_before;
    const int count = (end - begin + p.tokens - 1) / p.tokens;
    const int first = tiles_before + scan(count, tiles, [](int a, int b) { return a + b; }) - count;
    if (part < p.experts) p.ends[part] = end;
    for (int tile = 0; tile < count; ++tile) {
      const int row = begin + tile * p.tokens, left = end - row;
      for (int plane = 0; plane < p.planes; ++plane)
        p.tiles[plane * p.most + first + tile] = {plane * p.m + row, left < p.tokens ? left : p.tokens,
                                                  part < p.experts ? static_cast<int>(part) : -1};
    }
    rows_before = ends[kThreads - 1];
    tiles_before += tiles[kThreads - 1];
    __syncthreads();  // all have read them
  }
  for (int64_t empty = tiles_before + thread; empty < p.most; empty += kThreads)
    for (int plane = 0; plane < p.planes; ++plane) p.tiles[plane * p.most + empty] = {0, 0, 0};
}

}  // namespace

void expert_tiles_sm80(const ExpertRows& rows, CudaStream stream) { launch(list, 1u, kThreads, stream, rows); }

}  // namespace aoq
