// A grouped matmul on CUDA: the rows of x belong to experts, each with a weight of its own.
//
//   Where an expert's rows end is in the device's memory (`offsets`), and nothing waits for the device: how many rows
//   one has, the host does not know. It does know how many tiles of rows there can be at most. So one small kernel
//   lists them, and the blocks of a matmul kernel look up in that list which rows and whose weight they have:
//
//     offsets 3 3 10, m = 12, tiles of 4 rows:    rows    0 1 2 | 3 4 5 6 | 7 8 9 | 10 11 |
//                                                 expert    0   |    2    |   2   |  none |   and 3 empty places
//
//   Rows after the last offset are no expert's and become zeros. A kernel cannot raise: offsets that descend are taken
//   as the largest before them, and those beyond m as m.
#pragma once
#include <cstdint>

#include "cuda/cuda.h"
#include "formats/packed.h"
#include "mm/packed_mm.h"

namespace aoq {

// Rows of x that a block multiplies at once: `count` of them from `first` on, none where the list has more places than
// there are tiles. expert: whose they are, or -1.
struct ExpertTile {
  int64_t first;
  int32_t count, expert;
};

struct ExpertRows {
  const void* offsets;  // [experts], ascending: where the rows of each end
  bool offsets_int64;   // else int32
  int64_t experts, m;
  int tokens;         // of a tile, at most
  int planes;         // x [planes][m]: as many lists, each of its plane's rows
  int64_t most;       // places of a list: most_tiles
  ExpertTile* tiles;  // [planes][most]
  int32_t* ends;      // [experts]: offsets, ascending and at most m
};

namespace {

// How many tiles there are at most: each part of x, the rows after the last offset are one, has a row at least and one
// tile that is not full.
constexpr int64_t most_tiles(int64_t m, int64_t experts, int tokens) {
  const int64_t parts = experts + 1 < m ? experts + 1 : m;
  return parts + (m - parts) / tokens;
}

// What cost models are asked of: the rows of an expert if all that can have any have as many, a whole tile of few, and
// the weights of those as one tall weight.
constexpr int64_t experts_with_rows(int64_t m, int64_t experts) { return experts < m ? experts : m; }
constexpr int64_t rows_of_expert(int64_t m, int64_t experts) {
  const int64_t rows = ceil_div(m, experts_with_rows(m, experts));
  return rows <= 8 ? 8 : rows <= 16 ? 16 : rows < 32 ? 32 : rows;
}

}  // namespace

void expert_tiles_sm80(const ExpertRows&, CudaStream);

// x as int8 codes, rows `x_stride` apart, to 16-bit floats, which hold them exactly: rows `pitch` apart with zeros from
// k on. Then kernels for x as given multiply it.
struct CodesAsBf16 {
  int64_t m, k;
  const int8_t* codes;
  int64_t codes_stride;
  uint16_t* x;
  int64_t pitch;
};
void codes_as_bf16_sm80(const CodesAsBf16&, CudaStream);

}  // namespace aoq
