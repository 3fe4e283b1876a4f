// Packing and unpacking on CUDA: a thread has what one lane of a multiplying warp has of a tile.
#pragma once
#include <type_traits>

#include "cuda/grid.cuh"
#include "formats/nibbles_cuda.h"
#include "ops/int4_pack/int4_pack.h"
#include "ops/int4_unpack/int4_unpack.h"

namespace aoq::nibbles {
namespace {

constexpr int kPackThreads = 256;

// Calls visit(which words of a lane, Words of memory) for each plane of lane `index % 32` of tile `index / 32`.
template <int kBits, int kPlane = 0, class Bytes, class Visit>
__device__ void each_plane(Bytes* packed, int64_t index, Visit visit) {
  constexpr Plane kOf = Tile<kBits>::plane(kPlane);
  using Memory = std::conditional_t<std::is_const_v<Bytes>, const aoq::Words<kOf.words>, aoq::Words<kOf.words>>;
  if constexpr (Tile<kBits>::kPlanes == 1) {
    visit(kOf.first_word, reinterpret_cast<Memory*>(packed)[index]);
  } else {
    Bytes* const plane = packed + index / kLanes * Tile<kBits>::kBytes + kOf.offset;
    visit(kOf.first_word, reinterpret_cast<Memory*>(plane)[index % kLanes]);
    if constexpr (kPlane + 1 < Tile<kBits>::kPlanes) each_plane<kBits, kPlane + 1>(packed, index, visit);
  }
}

// A warp reads 8 * kBits bytes of each of sixteen rows, a byte or two a lane: L1 holds them between the sixteen loads.
template <int kBits>
__global__ void __launch_bounds__(kPackThreads) pack(Int4Pack p) {
  for (int64_t i = first_item(); i < lane_count(p.n, p.k); i += item_stride()) {
    const Words<kBits> lane = pack_lane<kBits>(p.qdata, p.n, p.k, i);
    each_plane<kBits>(p.packed, i, [&](int first, auto& place) {
      std::decay_t<decltype(place)> words;
      for (uint32_t& word : words.word) word = lane.word[first++];
      place = words;
    });
  }
}

template <int kBits>
__global__ void __launch_bounds__(kPackThreads) unpack(Int4Unpack p) {
  for (int64_t i = first_item(); i < lane_count(p.n, p.k); i += item_stride()) {  // whole warps, for the shuffles
    Words<kBits> lane;
    each_plane<kBits>(p.packed, i, [&](int first, const auto& place) {
      const auto words = place;
      for (const uint32_t word : words.word) lane.word[first++] = word;
    });
    unpack_lane(lane, p.qdata, p.n, p.k, i, [](uint32_t mine, int, int) {
      for (int other = 1; other < 4; other *= 2) mine |= __shfl_xor_sync(~0u, mine, other);
      return mine;
    });
  }
}

template <class Format>
void run_pack(const Int4Pack& p, CudaStream stream) {
  launch(pack<Format::kBits>, grid_for(lane_count(p.n, p.k), kPackThreads), kPackThreads, stream, p);
}
template <class Format>
void run_unpack(const Int4Unpack& p, CudaStream stream) {
  launch(unpack<Format::kBits>, grid_for(lane_count(p.n, p.k), kPackThreads), kPackThreads, stream, p);
}

}  // namespace
}  // namespace aoq::nibbles
