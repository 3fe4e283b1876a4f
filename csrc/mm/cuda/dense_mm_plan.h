// Which kernel multiplies matrices of 8-bit codes: constexpr, so that the host tests what the device gets. A kernel
// made with CUTLASS is named after its tile, and made of its name:
// <op>_cutlass_<tokens>x<rows>[_pairs][_stream_k][_<codes of x>_<codes of w>]_<sm>: rows of out, of w. Codes of fp8 are
// e4m3 unless named.
#pragma once
#include <algorithm>
#include <cstdint>
#include <string_view>

#include "base/dtype.h"
#include "mm/cuda/dense_mm_tiles.h"

namespace aoq::dense {

struct Problem {
  int64_t m, n, k;
  bool f32_out, x_e5m2, w_e5m2;
};

struct Device {
  int capability, multiprocessors;
  double bytes_per_ns;  // of memory, all multiprocessors together
};

constexpr int number_at(std::string_view text, size_t& at) {
  int value = 0;
  while (at < text.size() && text[at] >= '0' && text[at] <= '9') value = 10 * value + (text[at++] - '0');
  return value;
}

constexpr Tile tile_of(Sm sm, std::string_view name) {
  constexpr std::string_view marker = "_cutlass_";
  size_t at = name.find(marker) + marker.size();
  const int tokens = number_at(name, at);
  const int rows = number_at(name, ++at);
  const auto has = [&](std::string_view part) {
    const bool found = name.substr(at, part.size()) == part;
    if (found) at += part.size();
    return found;
  };
  const bool pairs = has("_pairs"), stream_k = has("_stream_k");
  const std::string_view codes = name.substr(at);
  const bool named = codes.size() > 10 && codes.substr(0, 2) == "_e";
  const auto e5m2 = [&](size_t from) { return named && codes.substr(from, 4) == "e5m2"; };
  return {sm, tokens, rows, pairs, stream_k, e5m2(1), e5m2(6)};
}

// Whose codes are int8; others' are fp8.
constexpr bool is_int8(std::string_view name) { return name.substr(0, 5) == "int8_"; }

// What TMA stores has rows of whole sixteen bytes, and the kernels for Hopper give 16-bit floats.
constexpr bool takes(const Tile& tile, const Problem& p) {
  if (tile.x_e5m2 != p.x_e5m2 || tile.w_e5m2 != p.w_e5m2) return false;
  return tile.sm != Sm::sm90a || (!p.f32_out && p.n % 8 == 0);
}

// A cost model in ns: the slower of the memory and of the multiprocessors. Those take tiles in turns; one is bound by
// its tensor core, by what shared memory feeds it, or by what L2 feeds that. No figure here was measured: they are what
// the vendor publishes and order the kernels, no more.
constexpr double nanoseconds(const Tile& tile, const Problem& p, const Device& device) {
  const bool wgmma = tile.sm == Sm::sm90a;
  const double clock = 1.7;  // GHz
  // Multiply-adds a clock; mma.sync reaches some 60% of Hopper's tensor cores.
  const double peak = wgmma ? 4096 : device.capability == 90 ? 2400 : device.capability == 80 ? 2048 : 1024;
  const double tokens = tile.tokens, rows = tile.rows;
  const bool large = tokens * rows > 128 * 128;  // both groups of warps share a tile
  const int64_t blocks = blocks_of(tile, p.m, p.n);
  const double busy = static_cast<double>(blocks < device.multiprocessors ? blocks : device.multiprocessors);
  // Clocks for each 128 columns of a tile. wgmma takes 64 rows of one side and, from shared memory, both sides' codes.
  const double multiply = tokens * rows * 128 / (peak * (large ? 0.88 : 0.8));  // of the peak: more to feed a small one
  const double feed = wgmma ? (tokens < 64 ? 16 * 4 * rows / 64 : 16 * 4 * tokens / 64) : (tokens + rows) * 128 / 64;
  const double arrive = (tokens + rows) * 128 / 64;
  // L2 gives at least 48 bytes a ns and multiprocessor, or the vendor's library would not reach what it does; a pair
  // takes what it shares once.
  const double l2 = (tokens + (tile.pairs ? rows / 2 : rows)) * 128 * busy / (48.0 * device.multiprocessors) * clock;
  const double a_tile = std::max({multiply, feed, arrive, l2});
  const double columns = static_cast<double>(ceil_div(p.k, 128));
  double turns = static_cast<double>(ceil_div(blocks, device.multiprocessors)), shared = 0;
  // Ends of tiles: hidden behind the next one's beginning where two groups of warps take turns.
  const double end = wgmma && !large ? 200 : 600;
  if (tile.stream_k && blocks % device.multiprocessors) {
    // Parts of eight steps along k at least. They walk less side by side, barriers are cleared before, and sums go to
    // L2 and back, one part after the other.
    const double tiles = static_cast<double>(blocks);
    const double parts = std::min<double>(device.multiprocessors, tiles * std::max(1.0, columns / 8));
    const double others = std::max(1.0, parts / tiles - 1);
    turns = 1.03 * tiles / parts;
    shared = 3000 + (1 + others) * tokens * rows * 4 / 48;
  }
  const double computing = turns * (columns * a_tile / clock + end) + shared;
  const double bytes = static_cast<double>(p.n * p.k + p.m * p.k + p.m * p.n * (p.f32_out ? 4 : 2));
  // Few tiles do not draw the whole rate: one gets 60 bytes a ns at most.
  const double rate = device.bytes_per_ns < 60 * busy ? device.bytes_per_ns : 60 * busy;
  const double moving = bytes / rate;
  // They overlap, not wholly.
  return computing > moving ? computing + moving / 10 : moving + computing / 10;
}

// The index of the best of `count` tiles, or -1 where `fits` is false for all.
template <class Tiles, class Fits>
constexpr int choose(const Tiles& tiles, int count, const Problem& p, const Device& device, Fits fits) {
  int best = -1;
  double least = 0;
  for (int i = 0; i < count; ++i) {
    if (!fits(i) || !takes(tiles[i], p)) continue;
    const double cost = nanoseconds(tiles[i], p, device);
    if (best >= 0 && cost >= least) continue;
    best = i;
    least = cost;
  }
  return best;
}

}  // namespace aoq::dense
