// How kernels made with CUTLASS share out a product of 8-bit codes: constexpr, for kernels, plans and tests.
#pragma once
#include <cstdint>

#include "cuda/sm.h"
#include "formats/packed.h"

namespace aoq::dense {

// pairs: two blocks side by side, of the same rows of w, are a cluster that reads them once. Where the second has no
// tokens it multiplies zeros, and the two still draw rows of w at twice the rate of one.
// stream_k: the tiles of the last turns are shared out evenly among all multiprocessors, along k too. Who has the end
// of a tile's k adds what those before it left in the workspace, each in its turn: always in one order.
struct Tile {
  Sm sm;
  int tokens, rows;
  bool pairs, stream_k, x_e5m2, w_e5m2;
};

constexpr int kWidestBand = 8;

// Tiles of out, whole pairs. `band`: how many tiles (pairs) side by side CUTLASS's scheduler for Hopper walks down
// together, so that L2 serves those at work at once. It rounds both sides up to whole bands, and what is beyond the
// problem costs what a tile costs.
constexpr int64_t blocks_of(const Tile& tile, int64_t m, int64_t n, int band = 1) {
  const int side = tile.pairs ? 2 : 1;
  return ceil_div(m, tile.tokens * side * band) * side * band * (ceil_div(n, tile.rows * band) * band);
}

// The widest band that takes no more turns of all multiprocessors than none, or with stream_k no more tiles. In one
// turn all are at work at once.
constexpr int band_of(const Tile& tile, int64_t m, int64_t n, int multiprocessors) {
  const int unit = tile.stream_k ? 1 : multiprocessors;
  const auto turns = [&](int band) { return ceil_div(blocks_of(tile, m, n, band), unit); };
  int band = turns(1) > 1 ? kWidestBand : 1;
  while (turns(band) > turns(1)) band /= 2;
  return band;
}

// At most: sums in fp32 or int32 of the tiles that are shared, fewer than two turns of them, and a barrier for each of
// two groups of warps.
constexpr int64_t workspace_bytes(const Tile& tile, int64_t m, int64_t n, int multiprocessors) {
  if (!tile.stream_k) return 0;
  const int64_t blocks = blocks_of(tile, m, n), most = 2 * int64_t{multiprocessors};
  return (blocks < most ? blocks : most) * (tile.tokens * tile.rows * 4 + 2 * 4) + 256;
}

}  // namespace aoq::dense
